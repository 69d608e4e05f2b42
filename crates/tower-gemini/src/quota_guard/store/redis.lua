-- One exchange: gives back, reports, asks. All of it or nothing, on the server's own clock.
--
-- KEYS: 1 the minute's sums and slots (hash), 2 its slots in order (list), 3 4 5 yesterday, today and tomorrow (counters),
--       6 the day that Google said is used up
-- ARGV: 1 slots an entry stays  2 slot ms  3 lease ms  4 margin ms  5-8 limits (-1: none)  9-12 need  13 calls at most
--       14 requests of the day to leave over  15 close the day (0 or 1)  16-18 the three days' numbers
--       19 20 where today begins and ends, ms  21 22 a day and what was heard of it (-1: nothing)  23-26 unreported
--       27 number of returns, then for each: slot, day, both days, four amounts back, tokens more
-- Gives: granted, slot, day, both days, retry after ms (-1: never), four amounts taken; or -1 and the server's time, where the
-- caller's idea of today is not the server's.

-- Before Redis 7 a script that reads the clock must say so to write; later it is the rule.
pcall(function() redis.replicate_commands() end)

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local n = {}
for i = 1, #ARGV do n[i] = tonumber(ARGV[i]) end
if now < n[19] or now >= n[20] then return { -1, now } end

local stay, slot_ms, lease_ms = n[1], n[2], n[3]
local sums = redis.call('HMGET', KEYS[1], 's0', 's1', 's2', 'n')
for d = 1, 3 do sums[d] = tonumber(sums[d] or 0) end
-- A clock that went back grants nothing: the last slot seen holds.
local slot = math.max(math.floor(now / slot_ms), tonumber(sums[4] or 0))
redis.call('HSET', KEYS[1], 'n', slot)

-- What has been in the window for all of it leaves.
while true do
    local oldest = tonumber(redis.call('LINDEX', KEYS[2], 0) or nil)
    if not oldest or oldest + 1 + stay > slot then break end
    redis.call('LPOP', KEYS[2])
    local gone = redis.call('HMGET', KEYS[1], oldest .. ':0', oldest .. ':1', oldest .. ':2')
    for d = 1, 3 do sums[d] = sums[d] - tonumber(gone[d] or 0) end
    redis.call('HDEL', KEYS[1], oldest .. ':0', oldest .. ':1', oldest .. ':2')
end

local day_keys = { [n[16]] = KEYS[3], [n[17]] = KEYS[4], [n[18]] = KEYS[5] }

local function charge(at, amounts, both)
    if redis.call('HEXISTS', KEYS[1], at .. ':0') == 0 then redis.call('RPUSH', KEYS[2], at) end
    for d = 1, 3 do
        redis.call('HINCRBY', KEYS[1], at .. ':' .. (d - 1), amounts[d])
        sums[d] = sums[d] + amounts[d]
    end
    if amounts[4] > 0 then
        redis.call('INCRBY', KEYS[4], amounts[4])
        redis.call('PEXPIREAT', KEYS[4], n[20] + 172800000)
        if both then
            redis.call('INCRBY', KEYS[5], amounts[4])
            redis.call('PEXPIREAT', KEYS[5], n[20] + 259200000)
        end
    end
end

local function uncharge_day(number, amount)
    local key = day_keys[number]
    if not key or amount <= 0 then return end
    local held = tonumber(redis.call('GET', key) or 0)
    redis.call('DECRBY', key, math.min(held, amount))
    redis.call('PEXPIREAT', key, n[20] + 172800000)
end

for i = 0, n[27] - 1 do
    local at = 28 + i * 8
    local name = string.format('%d', n[at])
    for d = 1, 3 do
        local held = tonumber(redis.call('HGET', KEYS[1], name .. ':' .. (d - 1)) or nil)
        local back = n[at + 2 + d]
        if held then
            back = math.min(held, back)
            if d == 2 then back = back - n[at + 7] end
            if back ~= 0 then
                redis.call('HINCRBY', KEYS[1], name .. ':' .. (d - 1), -back)
                sums[d] = sums[d] - back
            end
        end
    end
    uncharge_day(n[at + 1], n[at + 6])
    if n[at + 2] == 1 then uncharge_day(n[at + 1] + 1, n[at + 6]) end
end

-- A server that lost its memory hears what its clients remember.
if n[21] == n[17] and tonumber(redis.call('GET', KEYS[4]) or 0) < n[22] then
    redis.call('SET', KEYS[4], n[22])
    redis.call('PEXPIREAT', KEYS[4], n[20] + 172800000)
end
local unreported = { n[23], n[24], n[25], n[26] }
if n[23] > 0 or n[26] > 0 then charge(string.format('%d', slot), unreported, false) end
if n[15] == 1 then redis.call('SET', KEYS[6], n[17], 'PXAT', n[20]) end

-- Days after today count too: they were charged ahead of midnight, or before the clock went back.
local day = tonumber(redis.call('GET', KEYS[4]) or 0) + tonumber(redis.call('GET', KEYS[5]) or 0)
local granted, retry = n[13], 0
for d = 1, 4 do
    local limit, need = n[4 + d], n[8 + d]
    if limit >= 0 and need > 0 then
        local used = d == 4 and day + n[14] or sums[d]
        granted = math.min(granted, math.max(0, math.floor((limit - used) / need)))
    end
end
if tonumber(redis.call('GET', KEYS[6]) or -1) == n[17] then
    granted, retry = 0, n[20] - now
end

local at, both = 0, false
if granted > 0 then
    at = math.max(math.floor((now + lease_ms) / slot_ms), slot)
    both = n[20] - now <= lease_ms + n[4] + slot_ms
    local amounts = {}
    for d = 1, 4 do amounts[d] = n[8 + d] * granted end
    charge(string.format('%d', at), amounts, both)
    day = day + amounts[4]
elseif n[13] > 0 then
    for d = 1, 4 do
        local limit, need = n[4 + d], n[8 + d]
        if limit >= 0 and need > 0 and retry >= 0 then
            local used = d == 4 and day + n[14] or sums[d]
            if need > limit then
                retry = -1
            elseif used + need > limit then
                if d == 4 then
                    retry = math.max(retry, n[20] - now)
                else
                    local missing = used + need - limit
                    for _, held in ipairs(redis.call('LRANGE', KEYS[2], 0, -1)) do
                        missing = missing - tonumber(redis.call('HGET', KEYS[1], held .. ':' .. (d - 1)) or 0)
                        if missing <= 0 then
                            retry = math.max(retry, (tonumber(held) + 1 + stay) * slot_ms - now)
                            break
                        end
                    end
                end
            end
        end
    end
end

redis.call('HSET', KEYS[1], 's0', sums[1], 's1', sums[2], 's2', sums[3])
-- An idle model is forgotten when nothing of it is in any window.
local ttl = (stay + 4) * slot_ms + lease_ms
redis.call('PEXPIRE', KEYS[1], ttl)
redis.call('PEXPIRE', KEYS[2], ttl)
return { granted, at, n[17], both and 1 or 0, retry, sums[1], sums[2], sums[3], day }

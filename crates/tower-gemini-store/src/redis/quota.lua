-- One exchange: gives back, reports, asks. All of it or nothing, on the server's own clock.
--
-- KEYS: 1 the minute's sums and slots (hash), 2 its slots in order (list), 3 4 5 yesterday, today and tomorrow (counters),
--       6 the day that Google said is used up
-- ARGV: 1 slots an entry stays  2 slot ms  3 lease ms  4 margin ms  5-8 limits (-1: none)  9-12 need  13 calls at most
--       14 requests of the day to leave over  15 close the day (1), reopen it (2) or neither (0)  16-18 the three days' numbers
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
local window, order, today, tomorrow, closed = KEYS[1], KEYS[2], KEYS[4], KEYS[5], KEYS[6]
-- An idle model is forgotten when nothing of it is in any window; a day two days after its end.
local ttl = (stay + 4) * slot_ms + lease_ms
local day_end = n[20] + 172800000

-- The usual exchange gives nothing back and reports nothing: it is read in two calls and written in two. What is rare comes first and
-- writes for itself.
for i = 0, n[27] - 1 do
    local at = 28 + i * 8
    local name = string.format('%d', n[at])
    for d = 1, 3 do
        local held = tonumber(redis.call('HGET', window, name .. ':' .. (d - 1)) or nil)
        if held then
            local back = math.min(held, n[at + 2 + d])
            if d == 2 then back = back - n[at + 7] end
            if back ~= 0 then
                redis.call('HINCRBY', window, name .. ':' .. (d - 1), -back)
                redis.call('HINCRBY', window, 's' .. (d - 1), -back)
            end
        end
    end
    local days = { [n[16]] = KEYS[3], [n[17]] = today, [n[18]] = tomorrow }
    for step = 0, n[at + 2] do
        local key = days[n[at + 1] + step]
        if key and n[at + 6] > 0 then
            local held = tonumber(redis.call('GET', key) or 0)
            redis.call('SET', key, held - math.min(held, n[at + 6]), 'PXAT', day_end)
        end
    end
end
-- A server that lost its memory hears what its clients remember.
if n[21] == n[17] and tonumber(redis.call('GET', today) or 0) < n[22] then
    redis.call('SET', today, n[22], 'PXAT', day_end)
end
if n[23] > 0 or n[26] > 0 then
    local name = string.format('%d', math.floor(now / slot_ms))
    if redis.call('HEXISTS', window, name .. ':0') == 0 then redis.call('RPUSH', order, name) end
    for d = 0, 2 do
        redis.call('HINCRBY', window, name .. ':' .. d, n[23 + d])
        redis.call('HINCRBY', window, 's' .. d, n[23 + d])
    end
    redis.call('PEXPIRE', window, ttl)
    redis.call('PEXPIRE', order, ttl)
    redis.call('SET', today, tonumber(redis.call('GET', today) or 0) + n[26], 'PXAT', day_end)
end
if n[15] == 1 then redis.call('SET', closed, n[17], 'PXAT', n[20]) end
if n[15] == 2 then redis.call('DEL', closed) end

local at = math.floor((now + lease_ms) / slot_ms)
local name = string.format('%d', at)
local held = redis.call('HMGET', window, 's0', 's1', 's2', 'n', name .. ':0', name .. ':1', name .. ':2')
-- A clock that went back grants nothing: the last slot seen holds.
local slot = math.max(math.floor(now / slot_ms), tonumber(held[4] or 0))
if at < slot then
    at, name = slot, string.format('%d', slot)
    held = redis.call('HMGET', window, 's0', 's1', 's2', 'n', name .. ':0', name .. ':1', name .. ':2')
end
local sums = { tonumber(held[1] or 0), tonumber(held[2] or 0), tonumber(held[3] or 0) }

-- What has been in the window for all of it leaves.
while true do
    local oldest = redis.call('LINDEX', order, 0)
    if not oldest or tonumber(oldest) + 1 + stay > slot then break end
    redis.call('LPOP', order)
    local gone = redis.call('HMGET', window, oldest .. ':0', oldest .. ':1', oldest .. ':2')
    for d = 1, 3 do sums[d] = sums[d] - tonumber(gone[d] or 0) end
    redis.call('HDEL', window, oldest .. ':0', oldest .. ':1', oldest .. ':2')
end

-- Days after today count too: they were charged ahead of midnight, or before the clock went back.
local days = redis.call('MGET', today, tomorrow, closed)
local day_now, day_next = tonumber(days[1] or 0), tonumber(days[2] or 0)
local day = day_now + day_next
local granted, retry = n[13], 0
for d = 1, 4 do
    local limit, need = n[4 + d], n[8 + d]
    if limit >= 0 and need > 0 then
        local used = d == 4 and day + n[14] or sums[d]
        granted = math.min(granted, math.max(0, math.floor((limit - used) / need)))
    end
end
if tonumber(days[3] or nil) == n[17] then
    granted, retry = 0, n[20] - now
end

local both = false
if granted > 0 then
    both = n[20] - now <= lease_ms + n[4] + slot_ms
    if not held[5] then
        redis.call('RPUSH', order, name)
        redis.call('PEXPIRE', order, ttl)
    end
    for d = 1, 3 do
        local amount = n[8 + d] * granted
        sums[d] = sums[d] + amount
        held[4 + d] = tonumber(held[4 + d] or 0) + amount
    end
    redis.call('HSET', window, 's0', sums[1], 's1', sums[2], 's2', sums[3], 'n', slot,
        name .. ':0', held[5], name .. ':1', held[6], name .. ':2', held[7])
    local amount = n[12] * granted
    if amount > 0 then
        redis.call('SET', today, day_now + amount, 'PXAT', day_end)
        if both then redis.call('SET', tomorrow, day_next + amount, 'PXAT', day_end + 86400000) end
        day = day + amount
    end
else
    redis.call('HSET', window, 's0', sums[1], 's1', sums[2], 's2', sums[3], 'n', slot)
    if n[13] > 0 then
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
                        for _, entry in ipairs(redis.call('LRANGE', order, 0, -1)) do
                            missing = missing - tonumber(redis.call('HGET', window, entry .. ':' .. (d - 1)) or 0)
                            if missing <= 0 then
                                retry = math.max(retry, (tonumber(entry) + 1 + stay) * slot_ms - now)
                                break
                            end
                        end
                    end
                end
            end
        end
    end
end
redis.call('PEXPIRE', window, ttl)
return { granted, at, n[17], both and 1 or 0, retry, sums[1], sums[2], sums[3], day }

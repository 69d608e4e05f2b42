-- Reserves for an attempt, in every period or in none, or settles one. All of it or nothing, on the server's own clock.
--
-- KEYS: 1 open reservations by the time at which they are given up (sorted set)  2 every reservation that can be settled (hash)
--       3 those given up by the time at which they are forgotten (sorted set)  4... one hash for each period
-- ARGV: 1 'reserve'  2 name ('': reserve nothing)  3 ms after which it is given up  4 ms after which it is forgotten then
--       5-9 amounts, then for each period: start and end in seconds (-1: it does not end), five amounts that it begins with, five
--       caps (-1: none)
-- Gives: granted, time granted, then for each period: five amounts settled, five reserved, images; or -1 and the server's time,
-- where the caller's idea of a period is not the server's.
-- ARGV: 1 'settle'  2 name ('': nothing was reserved)  3 images  4-8 what it came to, then for each period its end in ms (-1)
-- Gives: 1, or 0 where nothing of this name is reserved.
--
-- Amounts stay text: HINCRBY counts in 64 bits, Lua in doubles.

-- Before Redis 7 a script that reads the clock must say so to write; later it is the rule.
pcall(function() redis.replicate_commands() end)

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local name = ARGV[2]

local function add(page, kind, amounts, sign)
    for d = 1, 5 do
        if amounts[d] ~= '0' then redis.call('HINCRBY', page, kind .. d, sign .. amounts[d]) end
    end
end

local function five(from)
    local amounts = {}
    for d = 1, 5 do amounts[d] = ARGV[from + d - 1] end
    return amounts
end

if ARGV[1] == 'settle' then
    local came_to, images = five(4), ARGV[3]
    if name == '' then
        for p = 4, #KEYS do
            add(KEYS[p], 's', came_to, '')
            if images ~= '0' then redis.call('HINCRBY', KEYS[p], 'images', images) end
            local ends = ARGV[9 + p - 4]
            if ends ~= '-1' then redis.call('PEXPIREAT', KEYS[p], ends) end
        end
        return 1
    end
    local held = redis.call('HGET', KEYS[2], name)
    if not held then return 0 end
    local open = cjson.decode(held)
    for _, page in ipairs(open.pages) do
        -- A period that is long over is forgotten.
        if redis.call('EXISTS', page) == 1 then
            -- What was given up is settled already, at its worst case.
            add(page, open.lost and 's' or 'r', open.amounts, '-')
            add(page, 's', came_to, '')
            if images ~= '0' then redis.call('HINCRBY', page, 'images', images) end
        end
    end
    redis.call('HDEL', KEYS[2], name)
    redis.call('ZREM', KEYS[1], name)
    redis.call('ZREM', KEYS[3], name)
    return 1
end

local function period(p) return 10 + (p - 4) * 12 end

for p = 4, #KEYS do
    local starts, ends = tonumber(ARGV[period(p)]), tonumber(ARGV[period(p) + 1])
    if now < starts * 1000 or (ends >= 0 and now >= ends * 1000) then return { -1, now } end
end

-- Whoever made these has died, and may have spent all of it.
for _, lost in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, 100)) do
    local held = redis.call('HGET', KEYS[2], lost)
    redis.call('ZREM', KEYS[1], lost)
    if held then
        local open = cjson.decode(held)
        for _, page in ipairs(open.pages) do
            if redis.call('EXISTS', page) == 1 then
                add(page, 'r', open.amounts, '-')
                add(page, 's', open.amounts, '')
            end
        end
        open.lost = true
        redis.call('HSET', KEYS[2], lost, cjson.encode(open))
        redis.call('ZADD', KEYS[3], now + tonumber(ARGV[4]), lost)
    end
end
for _, forgotten in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now, 'LIMIT', 0, 100)) do
    redis.call('HDEL', KEYS[2], forgotten)
    redis.call('ZREM', KEYS[3], forgotten)
end

local fields = { 's1', 's2', 's3', 's4', 's5', 'r1', 'r2', 'r3', 'r4', 'r5', 'images' }
local function page(p)
    if redis.call('EXISTS', KEYS[p]) == 0 then
        add(KEYS[p], 's', five(period(p) + 2), '')
    end
    local sums = redis.call('HMGET', KEYS[p], unpack(fields))
    for f = 1, #fields do sums[f] = sums[f] or '0' end
    return sums
end

local amounts = five(5)
local granted = 1
local known = name ~= '' and redis.call('HGET', KEYS[2], name)
if known then
    amounts = cjson.decode(known).amounts
elseif name ~= '' then
    local pages = {}
    -- Of time, what is left of a cap is enough.
    local left = nil
    for p = 4, #KEYS do
        pages[p] = page(p)
        local cap = tonumber(ARGV[period(p) + 11])
        if cap >= 0 then
            local here = cap - tonumber(pages[p][5]) - tonumber(pages[p][10])
            if not left or here < left then left = here end
        end
    end
    if left and left > 0 and left < tonumber(amounts[5]) then amounts[5] = string.format('%d', left) end
    for p = 4, #KEYS do
        for d = 1, 5 do
            local cap = tonumber(ARGV[period(p) + 6 + d])
            local taken = tonumber(pages[p][d]) + tonumber(pages[p][5 + d])
            if cap >= 0 and taken + tonumber(amounts[d]) > cap then granted = 0 end
        end
    end
    if granted == 1 then
        local in_pages = {}
        for p = 4, #KEYS do
            add(KEYS[p], 'r', amounts, '')
            in_pages[p - 3] = KEYS[p]
        end
        redis.call('ZADD', KEYS[1], now + tonumber(ARGV[3]), name)
        redis.call('HSET', KEYS[2], name, cjson.encode({ pages = in_pages, amounts = amounts }))
    end
end

local answer = { granted, amounts[5] }
for p = 4, #KEYS do
    for _, sum in ipairs(page(p)) do answer[#answer + 1] = sum end
    local ends = tonumber(ARGV[period(p) + 1])
    -- Two days longer than the period: for attempts that end after it.
    if ends >= 0 then redis.call('PEXPIREAT', KEYS[p], string.format('%d', ends * 1000 + 172800000)) end
end
return answer

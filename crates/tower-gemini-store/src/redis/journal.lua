-- One change of the journal, or one claim. Keys of all calls share a slot; their names are built
-- here from the prefix in KEYS[1].
--
-- c:<call>   hash   rec, own, st, since, key, fp, head, out
--            st: w waiting, i in flight, d in flight and detached, l lost, s stored, t stored and taken,
--                v delivered
-- f:<fp>     set    the calls with this fingerprint
-- r:<call>   string the body of the response
-- o:<owner>  string when the process was last heard of
-- b, z, n           bodies by expiry, their sizes, the sum of these
local p, op, me, call, fp = KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local c, f, r = p .. 'c:' .. call, p .. 'f:' .. fp, p .. 'r:' .. call

local function drop_body(id)
  redis.call('DEL', p .. 'r:' .. id)
  local size = redis.call('HGET', p .. 'z', id)
  if size then
    redis.call('HDEL', p .. 'z', id)
    redis.call('ZREM', p .. 'b', id)
    redis.call('DECRBY', p .. 'n', size)
  end
end

local function keep(key, ms)
  if redis.call('PTTL', key) < tonumber(ms) then redis.call('PEXPIRE', key, ms) end
end

-- How long a body is of use.
local function keep_body(ms)
  redis.call('PEXPIRE', r, ms)
  redis.call('ZADD', p .. 'b', 'XX', now + ms, call)
end

local function stay(state, ms)
  redis.call('HSET', c, 'st', state, 'since', now)
  redis.call('PEXPIRE', c, ms)
  keep(f, ms)
end

if op == 'beat' then
  redis.call('SET', p .. 'o:' .. me, now, 'PX', ARGV[5])
  return {1}
end

if op == 'claim' then
  local is_resend = ARGV[5] == '1'
  local lost, delivered, found, heard, detached = nil, nil, nil, nil, 0
  for _, id in ipairs(redis.call('SMEMBERS', f)) do
    local row = redis.call('HMGET', p .. 'c:' .. id, 'own', 'st', 'key')
    local own, st, key = row[1], row[2], row[3] == '1'
    if not own then
      redis.call('SREM', f, id)
    elseif own ~= me then
      local beat = redis.call('GET', p .. 'o:' .. own)
      if st == 's' or (st == 't' and not beat) then
        found = id
        break
      elseif st == 'v' then
        if is_resend then delivered = id end
      elseif st == 'l' or (not beat and st ~= 'w') then
        lost = lost or id
      elseif not beat then
        redis.call('DEL', p .. 'c:' .. id)
        redis.call('SREM', f, id)
      else
        if st == 'd' or key then detached = 1 end
        heard = math.max(now - beat, 0)
      end
    end
  end
  if not found and detached == 0 then found = lost or delivered end
  if not found then
    if heard then return {2, detached, heard} end
    return {0}
  end
  local row = redis.call('HMGET', p .. 'c:' .. found, 'rec', 'st', 'since', 'head', 'out', 'key')
  local state = row[2] == 'v' and 'v' or 'l'
  if row[2] == 's' or row[2] == 't' then
    state = row[6] == '1' and 's' or 't'
  end
  redis.call('HSET', p .. 'c:' .. found, 'own', me, 'st', state)
  -- It may not have written anything yet.
  redis.call('SET', p .. 'o:' .. me, now, 'PX', ARGV[6])
  local body = redis.call('GET', p .. 'r:' .. found)
  return {1, row[1], state, row[3], row[4] or '', row[5] or '', body}
end

if op == 'begin' then
  local rec, keyed, ms, state = ARGV[5], ARGV[6], ARGV[7], ARGV[8]
  if keyed == '1' then
    for _, id in ipairs(redis.call('SMEMBERS', f)) do
      local own = redis.call('HGET', p .. 'c:' .. id, 'own')
      if own and own ~= me then return {0} end
    end
  end
  redis.call('SET', p .. 'o:' .. me, now, 'PX', ARGV[9])
  redis.call('HSET', c, 'rec', rec, 'own', me, 'key', keyed)
  redis.call('HDEL', c, 'head', 'out')
  redis.call('SADD', f, call)
  stay(state, ms)
  return {1}
end

if redis.call('HGET', c, 'own') ~= me then return {0} end
local st = redis.call('HGET', c, 'st')
if op == 'charged' then
  redis.call('HSET', c, 'out', ARGV[5])
elseif op == 'detached' and (st == 'i' or st == 'd') then
  redis.call('HSET', c, 'st', ARGV[5])
elseif op == 'taken' and (st == 's' or st == 't') then
  redis.call('HSET', c, 'st', ARGV[5])
elseif (op == 'taken' and st == 'v') or op == 'delivered' then
  local state, ms = ARGV[5], ARGV[6]
  if op == 'delivered' then state, ms = 'v', ARGV[5] end
  stay(state, ms)
  keep_body(ms)
elseif op == 'lost' then
  drop_body(call)
  stay('l', ARGV[5])
elseif op == 'stored' then
  local ms, state, head, body, most = ARGV[5], ARGV[6], ARGV[7], ARGV[8], tonumber(ARGV[9])
  drop_body(call)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', p .. 'b', '-inf', now)) do drop_body(id) end
  while #body <= most and (tonumber(redis.call('GET', p .. 'n')) or 0) + #body > most do
    local first = redis.call('ZRANGE', p .. 'b', 0, 0)[1]
    if not first then break end
    drop_body(first)
    local of = redis.call('HGET', p .. 'c:' .. first, 'st')
    -- A client has what was delivered: that is no loss.
    if of and of ~= 'v' then redis.call('HSET', p .. 'c:' .. first, 'st', 'l') end
  end
  if #body > most then return {3} end
  redis.call('SET', r, body, 'PX', ms)
  redis.call('HSET', c, 'head', head)
  redis.call('ZADD', p .. 'b', now + ms, call)
  redis.call('HSET', p .. 'z', call, #body)
  redis.call('INCRBY', p .. 'n', #body)
  stay(state, ms)
elseif op == 'forget' then
  drop_body(call)
  redis.call('DEL', c)
  redis.call('SREM', f, call)
end
return {1}

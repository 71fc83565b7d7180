-- The log of a relay cluster in Redis or Valkey (6.2 or later). docs/reference/broker-entries.md documents its use by
-- other programs.
--
-- KEYS  1 the stream of entries   2 the state: a hash of epoch, head, stamp   3 the ended topics: a sorted set
--       4 prefix of the dedup keys   5 the last call of this publisher: a hash
-- ARGV  1 the operation, then its arguments:
--       open     EPOCH                 create the log with this epoch if it is missing
--       renew    KNOWN EPOCH           replace the epoch, if it is still the known one
--       publish  EPOCH PUBLISHER CALL WINDOW EVENT…   append events; WINDOW is the time to keep dedup keys in ms
-- Each EVENT is FLAGS TOPIC PAYLOAD, then DEDUP ID if FLAGS contains "d".
--       FLAGS "+": the event belongs to the request of the event before; all events of a request are appended, or none
--             "x": the event ends its topic
--             "d": DEDUP identifies the event; ID is its own id, or empty
--
-- open and renew return epoch, head, stamp, first retained sequence (head + 1 if none) and its time in ms, the time in
-- ms, and the ended topics.
-- publish returns lines: the epoch, then for each event its sequence, "=" and the id of an earlier event with the same
-- dedup key, or "!" if its topic has ended.
--
-- Sequences are contiguous: the entry after head has the id (head + 1)-0. Each entry has the field v1 (the payload) and
-- s (its stamp: the time in ms, the publisher and its call). The first entry of a call also has the field p: the epoch and the
-- stamp of the entry before, by which followers detect a log that has lost entries.

local ENDED_MAX = 10000
local CALL_MS = 86400000

local log, state, ended = KEYS[1], KEYS[2], KEYS[3]
local known = redis.call('HMGET', state, 'epoch', 'head', 'stamp')
local epoch, head, stamp = known[1], tonumber(known[2] or 0), known[3] or ''
local operation = ARGV[1]

local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local newest = tonumber(string.match(stamp, '^%d+'))
if newest and newest > now then
  now = newest
end

local function text(number)
  return string.format('%.0f', number)
end

local function has(flags, flag)
  return flags ~= '' and string.find(flags, flag, 1, true) ~= nil
end

if operation == 'publish' then
  -- Redis does not undo what a script has done before an error, so the arguments are checked first.
  local place = 6
  while place <= #ARGV do
    place = place + (has(ARGV[place], 'd') and 5 or 3)
  end
  if place ~= #ARGV + 1 then
    return redis.error_reply('ERR publish: an event is FLAGS TOPIC PAYLOAD, then DEDUP ID if FLAGS contains d')
  end
  if not string.match(ARGV[5] or '', '^[1-9]%d*$') or #ARGV[5] > 15 then
    return redis.error_reply('ERR publish: WINDOW is a number of milliseconds')
  end
elseif operation ~= 'open' and operation ~= 'renew' then
  return redis.error_reply('ERR the operation is open, renew or publish')
end

if not epoch then
  -- The state and the entries belong together: entries without a state are those of no log.
  epoch, head, stamp = operation == 'renew' and ARGV[3] or ARGV[2], 0, ''
  redis.call('DEL', log, ended)
  redis.call('HSET', state, 'epoch', epoch, 'head', '0', 'stamp', '')
end

if operation ~= 'publish' then
  local last = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
  if last and last[1] ~= text(head) .. '-0' then
    return redis.error_reply('ERR ' .. log .. ' has an entry that another program added without this script')
  end
  if operation == 'renew' and epoch == ARGV[2] then
    epoch = ARGV[3]
    redis.call('HSET', state, 'epoch', epoch)
  end
  local first = redis.call('XRANGE', log, '-', '+', 'COUNT', 1)
  local tail, tail_ms = text(head + 1), text(now)
  if first[1] then
    tail = string.match(first[1][1], '^%d+')
    tail_ms = string.match(first[1][2][4], '^%d+')
  end
  return {epoch, text(head), stamp, tail, tail_ms, text(now), redis.call('ZRANGE', ended, 0, -1)}
end

local publisher, call, window = ARGV[3], ARGV[4], ARGV[5]
local before = redis.call('HMGET', KEYS[5], 'call', 'result')
if before[1] == call then
  return before[2]
end

local any_ended = redis.call('ZCARD', ended) > 0
-- The call is part of the stamp: while the clock is behind the newest entry, the time does not advance.
local new_stamp = text(now) .. '-' .. publisher .. '-' .. call
local results = {epoch}
local at, stop = 6, #ARGV

local function is_ended(topic)
  return any_ended and redis.call('ZSCORE', ended, topic)
end

-- Return where the request at `from` stops, and whether its topics accept all of its events.
local function examine(from)
  local accepted, ending, place = true, {}, from
  repeat
    local flags, topic = ARGV[place], ARGV[place + 1]
    local is_repeat = false
    place = place + 3
    if has(flags, 'd') then
      is_repeat = redis.call('EXISTS', KEYS[4] .. ARGV[place]) == 1
      place = place + 2
    end
    if not is_repeat then
      if ending[topic] or is_ended(topic) then
        accepted = false
      end
      if has(flags, 'x') then
        ending[topic] = true
      end
    end
  until place > stop or not has(ARGV[place], '+')
  return place, accepted
end

local function append(flags, topic, payload)
  head = head + 1
  local id = text(head) .. '-0'
  if stamp == nil then
    redis.call('XADD', log, id, 'v1', payload, 's', new_stamp)
  else
    redis.call('XADD', log, id, 'v1', payload, 's', new_stamp, 'p', epoch .. ' ' .. stamp)
    stamp = nil
  end
  if has(flags, 'x') then
    redis.call('ZADD', ended, head, topic)
    redis.call('ZREMRANGEBYRANK', ended, 0, -ENDED_MAX - 1)
    any_ended = true
  end
  return text(head)
end

while at <= stop do
  local after, accepted = examine(at)
  while at < after do
    local flags, topic, payload = ARGV[at], ARGV[at + 1], ARGV[at + 2]
    at = at + 3
    local result = '!'
    if has(flags, 'd') then
      local key, own = KEYS[4] .. ARGV[at], ARGV[at + 1]
      at = at + 2
      local first = accepted and redis.call('GET', key)
      if first then
        result = '=' .. first
      elseif accepted then
        result = append(flags, topic, payload)
        redis.call('SET', key, own ~= '' and own or epoch .. '-' .. result, 'PX', window)
      end
    elseif accepted then
      result = append(flags, topic, payload)
    end
    results[#results + 1] = result
  end
end

local result = table.concat(results, '\n')
if stamp == nil then
  redis.call('HSET', state, 'head', text(head), 'stamp', new_stamp)
end
redis.call('HSET', KEYS[5], 'call', call, 'result', result)
redis.call('PEXPIRE', KEYS[5], CALL_MS)
return result

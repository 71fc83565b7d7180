-- Token buckets that the nodes of a relay cluster share. The rules are those of `relay.front.rate`.
--
-- KEYS  the bucket of each take
-- ARGV  1 tokens per second   2 the capacity of a bucket   then the number of tokens of each take
-- Returns for each take 0 if the tokens were taken, else the seconds until the bucket has enough, as text.

local per_s, full = tonumber(ARGV[1]), tonumber(ARGV[2])
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000

local waits = {}
for place, key in ipairs(KEYS) do
  local count = tonumber(ARGV[place + 2])
  local bucket = redis.call('HMGET', key, 'left', 'at')
  local left = full
  if bucket[1] then
    left = math.min(full, tonumber(bucket[1]) + math.max(0, now - tonumber(bucket[2])) * per_s)
  end
  local missing = math.min(count, full) - left
  local wait = '0'
  if missing > 0 then
    wait = string.format('%.6f', missing / per_s + 0.000001)
  else
    left = left - count
    redis.call('HSET', key, 'left', string.format('%.6f', left), 'at', string.format('%.6f', now))
    redis.call('PEXPIRE', key, math.ceil(1000 * (full - left) / per_s))
  end
  waits[place] = wait
end
return waits

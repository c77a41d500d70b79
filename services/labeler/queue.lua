#!lua name=tutelage_queue_1

-- The labeler's queue: every change of it is one of these functions, so that none is ever half made.
-- `services.labeler.queue` says what they are for. KEYS[1] is the prefix of all keys, in one {hash tag}.
--
--   :query:ID     hash     kind body gold again member score at wanted answered leased broken state only never
--   :with:ID      hash     annotator -> "lease", "answer:EVENT", "skip"
--   :open         zset     what anybody can lease, best first; the member ends in ID
--   :open:WHO     zset     likewise, what is only for some
--   :leases       zset     "ID\nANNOTATOR" -> when it ends, in ms
--   :held:WHO     zset     what an annotator has leased -> since when, in µs
--   :answers      stream   answers and undone ones, in the order in which they were made
--   :finished     zset     ID -> when it was done: its body is dropped a while later
--   :dead         hash     ID -> why
--   :counts       hash     totals
--   :passed:WHO   string   how far in :open the last lease looked, where there were too few among the first
--   :banned       set
--   :paused       string   "1" nothing is leased; "drain" nothing new is
--   :depth        hash     kind -> how many are open
--   :since        zset     what is open -> when it was asked, in ms

local KEEP_BODY_MS = 600000  -- an answer may be undone meanwhile
local SCANNED = 1000         -- open queries that are looked at for one lease, at a time
local PASSED_S = 3600        -- that it is remembered how far somebody has come

local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

local function query_key(p, id) return p .. ':query:' .. id end
local function with_key(p, id) return p .. ':with:' .. id end
local function count(p, what, by) redis.call('HINCRBY', p .. ':counts', what, by or 1) end

local function numbers(p, id)
  local got = redis.call('HMGET', query_key(p, id), 'wanted', 'answered', 'leased')
  return tonumber(got[1]), tonumber(got[2]), tonumber(got[3])
end

local function indices(p, only)  -- names are "\nANNA\nBERT\n"
  if only == '' then return {p .. ':open'} end
  local keys = {}
  for who in string.gmatch(only, '[^\n]+') do keys[#keys + 1] = p .. ':open:' .. who end
  return keys
end

-- In the index exactly while it is open and somebody could still take it.
local function index(p, id)
  local got = redis.call('HMGET', query_key(p, id), 'state', 'member', 'score', 'kind', 'at', 'only')
  local wanted, answered, leased = numbers(p, id)
  if got[1] == 'open' and wanted > answered + leased then
    if redis.call('ZADD', p .. ':since', got[5], got[2]) == 1 then
      redis.call('HINCRBY', p .. ':depth', got[4], 1)
      for _, key in ipairs(indices(p, got[6])) do redis.call('ZADD', key, got[3], got[2]) end
    end
  elseif redis.call('ZREM', p .. ':since', got[2]) == 1 then
    redis.call('HINCRBY', p .. ':depth', got[4], -1)
    for _, key in ipairs(indices(p, got[6])) do redis.call('ZREM', key, got[2]) end
  end
end

local function take_lease(p, id, who, now, until_ms)
  local held = p .. ':held:' .. who
  redis.call('ZADD', p .. ':leases', until_ms, id .. '\n' .. who)
  redis.call('HSET', with_key(p, id), who, 'lease')
  redis.call('ZADD', held, now * 1000 + redis.call('ZCARD', held), id)
  redis.call('HINCRBY', query_key(p, id), 'leased', 1)
end

local function drop_lease(p, id, who)
  redis.call('ZREM', p .. ':leases', id .. '\n' .. who)
  redis.call('HDEL', with_key(p, id), who)
  redis.call('ZREM', p .. ':held:' .. who, id)
  redis.call('HINCRBY', query_key(p, id), 'leased', -1)
end

local function expire(p, now)
  local late = redis.call('ZRANGE', p .. ':leases', '-inf', now, 'BYSCORE', 'LIMIT', 0, 200)
  for _, entry in ipairs(late) do
    local at = string.find(entry, '\n', 1, true)
    local id, who = string.sub(entry, 1, at - 1), string.sub(entry, at + 1)
    drop_lease(p, id, who)
    index(p, id)
    count(p, 'expired')
  end
  local old = redis.call('ZRANGE', p .. ':finished', '-inf', now - KEEP_BODY_MS, 'BYSCORE', 'LIMIT', 0, 200)
  for _, id in ipairs(old) do
    redis.call('HDEL', query_key(p, id), 'body')
    redis.call('ZREM', p .. ':finished', id)
  end
  return #late
end

-- The question is done once it has all the answers that were wanted.
local function close(p, id)
  local got = redis.call('HMGET', query_key(p, id), 'state', 'wanted', 'answered')
  if (got[1] == 'open' or got[1] == 'restored') and tonumber(got[3]) >= tonumber(got[2]) then
    redis.call('HSET', query_key(p, id), 'state', 'done')
    redis.call('ZADD', p .. ':finished', now_ms(), id)
  end
  index(p, id)
end

-- The answer of WHO is there.
local function settle(p, id, who, event)
  redis.call('HSET', with_key(p, id), who, 'answer:' .. event)
  redis.call('HINCRBY', query_key(p, id), 'answered', 1)
  close(p, id)
end

-- An answer does not count any more: the question is asked again, or once it is submitted if its body is gone.
local function unsettle(p, id)
  redis.call('HINCRBY', query_key(p, id), 'answered', -1)
  if redis.call('HGET', query_key(p, id), 'state') ~= 'done' then return end
  local has_body = redis.call('HEXISTS', query_key(p, id), 'body') == 1
  redis.call('HSET', query_key(p, id), 'state', has_body and 'open' or 'restored')
  redis.call('ZREM', p .. ':finished', id)
end

local function among(names, who)
  return string.find(names, '\n' .. who .. '\n', 1, true) ~= nil
end

local function is_banned(p, who) return redis.call('SISMEMBER', p .. ':banned', who) == 1 end

local function is_for(p, id, who)
  local got = redis.call('HMGET', query_key(p, id), 'only', 'never')
  return (got[1] == '' or among(got[1], who)) and not among(got[2], who)
end

local function may_take(p, id, who, kinds)
  local got = redis.call('HMGET', query_key(p, id), 'kind', 'never')
  if next(kinds) and not kinds[got[1]] then return false end
  if among(got[2], who) then return false end
  return redis.call('HEXISTS', with_key(p, id), who) == 0
end

local function shown(p, id, who)
  local got = redis.call('HMGET', query_key(p, id), 'kind', 'body', 'again')
  return {id, got[1], got[2], redis.call('ZSCORE', p .. ':leases', id .. '\n' .. who),
    redis.call('ZSCORE', p .. ':held:' .. who, id), got[3] or ''}
end

-- The best open questions one at a time: SCANNED of those for all, and of those for WHO alone; and as many of
-- those for all from where the last call for WHO got to, so that who can take none of the first, having answered
-- them, comes to the others. Besides, a function that remembers where this one got to
local function best_first(p, who)
  local passed = tonumber(redis.call('GET', p .. ':passed:' .. who) or 0)
  local from = math.max(SCANNED, passed)
  local further = {key = p .. ':open', from = from, ends = from + SCANNED}
  local heads = {
    {key = p .. ':open', from = 0, ends = SCANNED}, further, {key = p .. ':open:' .. who, from = 0, ends = SCANNED},
  }
  for _, head in ipairs(heads) do head.page, head.at, head.read = {}, 1, 0 end
  local function next_member()
    local best
    for _, head in ipairs(heads) do
      if head.at > #head.page and head.from < head.ends then
        local n = math.min(64, head.ends - head.from)
        head.page = redis.call('ZRANGE', head.key, head.from, head.from + n - 1, 'WITHSCORES')
        head.is_last = #head.page < 2 * n
        head.from, head.at = head.is_last and head.ends or head.from + n, 1
      end
      if head.at <= #head.page then
        local score = tonumber(head.page[head.at + 1])
        if not best or score < best.score or (score == best.score and head.page[head.at] < best.member) then
          best = {head = head, score = score, member = head.page[head.at]}
        end
      end
    end
    if not best then return nil end
    best.head.at, best.head.read = best.head.at + 2, best.head.read + 1
    return best.member
  end
  local function remember(taken)
    local now = from + further.read - taken
    if further.is_last and further.at > #further.page then now = 0 end  -- from the beginning again
    if now ~= passed and (further.read > 0 or now == 0) then
      redis.call('SET', p .. ':passed:' .. who, now, 'EX', PASSED_S)
    end
  end
  return next_member, remember
end

-- ID KIND BODY SCORE WANTED ONLY NEVER GOLD STATE AGAIN -> 1, or 0 where it is there already, or was withdrawn
-- before it came. STATE is "open", or "kept" for one that is only lent
local function submit(keys, args)
  local p, id = keys[1], args[1]
  local key, state = query_key(p, id), redis.call('HGET', query_key(p, id), 'state')
  if state and state ~= 'restored' then return 0 end
  redis.call('HDEL', p .. ':dead', id)
  if state ~= 'restored' then
    local member = string.format('%014d:%s', redis.call('HINCRBY', p .. ':counts', 'submitted', 1), id)
    redis.call('HSET', key, 'member', member, 'answered', 0, 'leased', 0)
  end
  redis.call('HSET', key, 'kind', args[2], 'body', args[3], 'score', args[4], 'wanted', args[5], 'only', args[6],
    'never', args[7], 'gold', args[8], 'at', now_ms(), 'broken', 0, 'state', args[9], 'asked', args[9],
    'again', args[10])
  index(p, id)
  return 1
end

-- ID WHO TTL_MS -> "lent": a kept question is leased to this one. "had": not again. "absent": it is not kept, or
-- not yet. "refused": in a pause, or WHO is banned
local function lend(keys, args)
  local p, id, who, now = keys[1], args[1], args[2], now_ms()
  if redis.call('EXISTS', p .. ':paused') == 1 then return 'refused' end
  if is_banned(p, who) then return 'refused' end
  if redis.call('HGET', query_key(p, id), 'state') ~= 'kept' then return 'absent' end
  if redis.call('HEXISTS', with_key(p, id), who) == 1 then return 'had' end
  take_lease(p, id, who, now, now + tonumber(args[3]))
  return 'lent'
end

-- WHO TTL_MS N [KIND...] -> what WHO has leased then, at most N, first what it has had for longest, each
-- {ID, KIND, BODY, end of the lease in ms, its beginning in µs}
local function lease(keys, args)
  local p, who, ttl, n = keys[1], args[1], tonumber(args[2]), tonumber(args[3])
  local now = now_ms()
  expire(p, now)
  if is_banned(p, who) then return redis.error_reply('BANNED') end
  local paused = redis.call('GET', p .. ':paused')
  if paused and paused ~= 'drain' then return {} end
  local kinds, taken = {}, {}
  for i = 4, #args do kinds[args[i]] = true end
  for _, id in ipairs(redis.call('ZRANGE', p .. ':held:' .. who, 0, -1)) do
    local kind = redis.call('HGET', query_key(p, id), 'kind')
    if #taken < n and (not next(kinds) or kinds[kind]) then
      redis.call('ZADD', p .. ':leases', now + ttl, id .. '\n' .. who)
      taken[#taken + 1] = shown(p, id, who)
    end
  end
  if paused then return taken end
  if #taken >= n then return taken end
  local found = {}  -- taken afterwards: that changes the index
  local next_member, remember = best_first(p, who)
  for member in next_member do
    local id = string.sub(member, 16)
    if may_take(p, id, who, kinds) then found[#found + 1] = id end
    if #taken + #found >= n then break end
  end
  remember(#found)
  for _, id in ipairs(found) do
    take_lease(p, id, who, now, now + ttl)
    index(p, id)
    taken[#taken + 1] = shown(p, id, who)
  end
  return taken
end

-- WHO TTL_MS ID... -> those of them that WHO still has
local function beat(keys, args)
  local p, who, ends, kept = keys[1], args[1], now_ms() + tonumber(args[2]), {}
  for i = 3, #args do
    if redis.call('ZADD', p .. ':leases', 'XX', 'CH', ends, args[i] .. '\n' .. who) == 1
      or redis.call('ZSCORE', p .. ':leases', args[i] .. '\n' .. who) then
      kept[#kept + 1] = args[i]
    end
  end
  return kept
end

-- ID WHO BODY -> {"accepted" | "duplicate" | "lost" | "unknown", EVENT}
local function answer(keys, args)
  local p, id, who = keys[1], args[1], args[2]
  local state = redis.call('HGET', query_key(p, id), 'state')
  if not state then return {'unknown', ''} end
  local with = redis.call('HGET', with_key(p, id), who)
  if with and string.sub(with, 1, 7) == 'answer:' then
    count(p, 'duplicates')
    return {'duplicate', string.sub(with, 8)}
  end
  if with == 'lease' then
    drop_lease(p, id, who)
  else  -- the lease has ended: it counts if nobody else has the question instead
    local wanted, answered, leased = numbers(p, id)
    if state ~= 'open' or wanted <= answered + leased or is_banned(p, who) or not is_for(p, id, who) then
      count(p, 'lost')
      return {'lost', ''}
    end
  end
  local got = redis.call('HMGET', query_key(p, id), 'kind', 'gold', 'again')
  local event = redis.call('XADD', p .. ':answers', '*', 'type', 'answer', 'id', id, 'kind', got[1],
    'who', who, 'body', args[3], 'gold', got[2], 'again', got[3] or '')
  settle(p, id, who, event)
  count(p, 'answered')
  return {'accepted', event}
end

-- ID WHO TTL_MS -> {"undone" | "late" | "unknown", EVENT that is undone}; WHO has the question again
local function undo(keys, args)
  local p, id, who = keys[1], args[1], args[2]
  local with = redis.call('HGET', with_key(p, id), who)
  if not with or string.sub(with, 1, 7) ~= 'answer:' then return {'unknown', ''} end
  local got = redis.call('HMGET', query_key(p, id), 'state', 'kind', 'body', 'again', 'gold')
  if not got[3] or is_banned(p, who) then return {'late', ''} end
  local event = string.sub(with, 8)
  redis.call('XADD', p .. ':answers', '*', 'type', 'undo', 'id', id, 'kind', got[2], 'who', who, 'undoes', event,
    'gold', got[5], 'again', got[4] or '')
  unsettle(p, id)
  local now = now_ms()
  take_lease(p, id, who, now, now + tonumber(args[3]))
  index(p, id)
  count(p, 'undone')
  return {'undone', event}
end

-- ID WHO WHY BROKEN_LIMIT -> 1, or 0 where WHO does not have it. WHY is empty for a question that WHO skips
local function give_back(keys, args)
  local p, id, who, why = keys[1], args[1], args[2], args[3]
  if redis.call('HGET', with_key(p, id), who) ~= 'lease' then return 0 end
  drop_lease(p, id, who)
  redis.call('HSET', with_key(p, id), who, 'skip')
  count(p, 'given_back')
  if why ~= '' and redis.call('HINCRBY', query_key(p, id), 'broken', 1) >= tonumber(args[4]) then
    redis.call('HSET', query_key(p, id), 'state', 'dead')
    redis.call('HSET', p .. ':dead', id, why)
  end
  index(p, id)
  return 1
end

-- ID WHY -> 1, or 0 where it is there: a dead letter of a question that could not even be asked, or not again
local function bury(keys, args)
  local p, id = keys[1], args[1]
  local state = redis.call('HGET', query_key(p, id), 'state')
  if state and state ~= 'restored' then return 0 end
  if state then redis.call('HSET', query_key(p, id), 'state', 'dead') end
  redis.call('HSET', p .. ':dead', id, args[2])
  return 1
end

-- ID -> 1, or 0 where it was open anyway. Dead and withdrawn questions can be asked again; one that never
-- was asked is not known any more, or only by its answers, and whoever has it may submit it
local function requeue(keys, args)
  local p, id = keys[1], args[1]
  local state = redis.call('HGET', query_key(p, id), 'state')
  if not state then return redis.call('HDEL', p .. ':dead', id) end
  if state == 'unasked' then return redis.call('DEL', query_key(p, id)) end
  if state ~= 'dead' and state ~= 'withdrawn' then return 0 end
  local got = redis.call('HMGET', query_key(p, id), 'asked', 'body')
  local asked = got[2] and (got[1] or 'open') or 'restored'
  redis.call('HSET', query_key(p, id), 'state', asked, 'broken', 0)
  redis.call('HDEL', p .. ':dead', id)
  for _, who in ipairs(redis.call('HKEYS', with_key(p, id))) do
    if redis.call('HGET', with_key(p, id), who) == 'skip' then redis.call('HDEL', with_key(p, id), who) end
  end
  close(p, id)
  return 1
end

-- ID... -> how many were open or not submitted. Nobody is given them any more; who has one may still answer it
local function withdraw(keys, args)
  local p, withdrawn = keys[1], 0
  for _, id in ipairs(args) do
    local state = redis.call('HGET', query_key(p, id), 'state')
    if state == 'open' or state == 'restored' then
      redis.call('HSET', query_key(p, id), 'state', 'withdrawn')
      index(p, id)
      withdrawn = withdrawn + 1
    elseif not state and redis.call('HEXISTS', p .. ':dead', id) == 0 then
      redis.call('HSET', query_key(p, id), 'state', 'unasked')
      withdrawn = withdrawn + 1
    end
  end
  return withdrawn
end

-- WHO 0|1 -> nothing. What a banned annotator has leased goes back
local function ban(keys, args)
  local p, who = keys[1], args[1]
  if args[2] == '0' then return redis.call('SREM', p .. ':banned', who) end
  redis.call('SADD', p .. ':banned', who)
  for _, id in ipairs(redis.call('ZRANGE', p .. ':held:' .. who, 0, -1)) do
    drop_lease(p, id, who)
    index(p, id)
  end
  return 1
end

-- Nobody holds a question for more answers than are wanted.
local function drop_surplus(p, id)
  local wanted, answered, leased = numbers(p, id)
  for _, who in ipairs(redis.call('HKEYS', with_key(p, id))) do
    if answered + leased <= wanted then return end
    if redis.call('HGET', with_key(p, id), who) == 'lease' then
      drop_lease(p, id, who)
      leased = leased - 1
    end
  end
end

-- EVENT ID KIND WHO UNDOES BODY GOLD WANTED AGAIN -> 1, or 0 where it is there: an event of the ledger, put
-- back. A question that wants more answers is asked again once it is submitted
local function restore(keys, args)
  local p, event, id, who, undoes = keys[1], args[1], args[2], args[4], args[5]
  local with = redis.call('HGET', with_key(p, id), who)
  if undoes ~= '' then
    if with ~= 'answer:' .. undoes then return 0 end
    redis.call('XADD', p .. ':answers', event, 'type', 'undo', 'id', id, 'kind', args[3], 'who', who, 'undoes', undoes,
      'gold', args[7], 'again', args[9])
    unsettle(p, id)
    redis.call('HDEL', with_key(p, id), who)
    index(p, id)
    count(p, 'undone')
    return 1
  end
  if with == 'lease' then
    drop_lease(p, id, who)
  elseif with and string.sub(with, 1, 7) == 'answer:' then
    return 0
  end
  if redis.call('EXISTS', query_key(p, id)) == 0 then
    local member = string.format('%014d:%s', redis.call('HINCRBY', p .. ':counts', 'submitted', 1), id)
    redis.call('HSET', query_key(p, id), 'kind', args[3], 'score', 0, 'wanted', args[8], 'only', '', 'never', '',
      'gold', args[7], 'member', member, 'at', now_ms(), 'answered', 0, 'leased', 0, 'broken', 0, 'state', 'restored',
      'again', args[9])
  end
  redis.call('XADD', p .. ':answers', event, 'type', 'answer', 'id', id, 'kind', args[3], 'who', who,
    'body', args[6], 'gold', args[7], 'again', args[9])
  settle(p, id, who, event)
  drop_surplus(p, id)
  count(p, 'answered')
  return 1
end

redis.register_function('tutelage_submit', submit)
redis.register_function('tutelage_lend', lend)
redis.register_function('tutelage_lease', lease)
redis.register_function('tutelage_beat', beat)
redis.register_function('tutelage_answer', answer)
redis.register_function('tutelage_undo', undo)
redis.register_function('tutelage_give_back', give_back)
redis.register_function('tutelage_bury', bury)
redis.register_function('tutelage_requeue', requeue)
redis.register_function('tutelage_withdraw', withdraw)
redis.register_function('tutelage_ban', ban)
redis.register_function('tutelage_restore', restore)
redis.register_function('tutelage_expire', function(keys, args) return expire(keys[1], now_ms()) end)

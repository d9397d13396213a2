-- Posts view counts, form-encoded:
--
--   FILE FROM MOVED
--
-- FILE sets cids, strings of equal length. Each thread repeats them from its own starting point. The counts go up from
-- FROM, and no count is posted twice. Where FILE sets movers as well, every 1,000th post moves a file: it is of the next
-- mover, and its count calls for silver or bronze in turn. MOVED posts of movers came before.
local threads = 0

function setup(thread)
  thread:set("id", threads)
  threads = threads + 1
end

function init(args)
  dofile(args[1])
  at = id * 7919 % #cids
  count = (id + 1) * 1000000000 + args[2]
  moved = tonumber(args[3])
  posted = 0
  start = "POST " .. wrk.path .. " HTTP/1.1\r\nHost: " .. wrk.host ..
    "\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: "
  head = start .. #("cid=" .. cids[1] .. "&count=" .. count) .. "\r\n\r\ncid="
end

local function move()
  local round = math.floor(moved / #movers)
  local body = "cid=" .. movers[moved % #movers + 1] .. "&count=" .. (round % 2 == 0 and 1000 + round or round)
  moved = moved + 1
  return start .. #body .. "\r\n\r\n" .. body
end

function request()
  posted = posted + 1
  if movers and posted % 1000 == 0 then return move() end
  at = at % #cids + 1
  count = count + 1
  return head .. cids[at] .. "&count=" .. count
end

function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format("RESULT %d %d %d %d\n", summary.duration, summary.requests, e.status,
    e.connect + e.read + e.write + e.timeout))
end

-- Posts view counts, form-encoded. The file named by the first argument sets cids, strings of equal length. Each thread
-- repeats them from its own starting point, and no count is posted twice.
local threads = 0

function setup(thread)
  thread:set("id", threads)
  threads = threads + 1
end

function init(args)
  dofile(args[1])
  at = id * 7919 % #cids
  count = (id + 1) * 1000000000
  local length = #("cid=" .. cids[1] .. "&count=" .. count)
  head = "POST " .. wrk.path .. " HTTP/1.1\r\nHost: " .. wrk.host ..
    "\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: " .. length .. "\r\n\r\ncid="
end

function request()
  at = at % #cids + 1
  count = count + 1
  return head .. cids[at] .. "&count=" .. count
end

function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format("RESULT %d %d %d %d\n", summary.duration, summary.requests, e.status,
    e.connect + e.read + e.write + e.timeout))
end

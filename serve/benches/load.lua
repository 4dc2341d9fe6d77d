-- wrk's requests: one text each, of the mixed lengths that encoder/benches measures (8 to 128 tokens), made of
-- common words, the same for every service.
local words = {}
for word in ([[the of and to in a is that for it as was with be by on not he his but at are this have from or had an
  they which one you were all her she there would their we him been has when who will no more if out so up said what its
  about than into them can only other time new some could these two may first then do any like my now over such our man
  me even most made after also well must years much where your way down should because long each just those people how
  too little state good very make world still see own work men day get here between both life being under three never]])
    :gmatch("%S+") do
  words[#words + 1] = word
end

local made = 0
local requests = {}

function init(args)
  for text = 0, 511 do
    local list = {}
    for i = 1, 8 + text * 53 % 121 - 2 do
      list[i] = words[(text * 131 + i * 7919 + text * i * 31) % #words + 1]
    end
    local body = '{"inputs": "' .. table.concat(list, " ") .. '"}'
    requests[#requests + 1] = wrk.format("POST", "/embed", { ["Content-Type"] = "application/json" }, body)
  end
end

function request()
  made = made + 1
  return requests[made % #requests + 1]
end

function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format("RESULT %d %d %f %f %d\n", summary.requests, summary.duration, latency:percentile(50),
    latency:percentile(99), e.connect + e.read + e.write + e.status + e.timeout))
end

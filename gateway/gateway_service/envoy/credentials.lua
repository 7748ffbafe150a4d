-- Credentials that the gateway service verified a moment ago. Shared by the scripts after it, each with tables of its
-- own, one for each Envoy worker thread. Keys are SHA-256 digests under a salt drawn at start; no credential is kept.
-- `SALT`, `TTL_MILLISECONDS` and `MAX_ENTRIES` are set above by the renderer.

local bit = require("bit")
local band, bnot, bxor, rrotate, rshift, tobit = bit.band, bit.bnot, bit.bxor, bit.ror, bit.rshift, bit.tobit
local byte, char, concat = string.byte, string.char, table.concat

local K = {
  0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
  0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
  0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
  0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
  0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
  0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
  0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
  0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
}

local function word_bytes(n)
  return char(band(rshift(n, 24), 255), band(rshift(n, 16), 255), band(rshift(n, 8), 255), band(n, 255))
end

local W = {}
local function sha256(text)
  local length = #text
  text = text .. "\128" .. ("\0"):rep((55 - length) % 64) .. "\0\0\0\0" .. word_bytes(length * 8)
  local h0, h1, h2, h3 = 0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a
  local h4, h5, h6, h7 = 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19
  for start = 1, #text, 64 do
    for i = 1, 16 do
      local a, b, c, d = byte(text, start + i * 4 - 4, start + i * 4 - 1)
      W[i] = a * 16777216 + b * 65536 + c * 256 + d
    end
    for i = 17, 64 do
      local x, y = W[i - 15], W[i - 2]
      local s0 = bxor(rrotate(x, 7), rrotate(x, 18), rshift(x, 3))
      local s1 = bxor(rrotate(y, 17), rrotate(y, 19), rshift(y, 10))
      W[i] = tobit(W[i - 16] + s0 + W[i - 7] + s1)
    end
    local a, b, c, d, e, f, g, h = h0, h1, h2, h3, h4, h5, h6, h7
    for i = 1, 64 do
      local s1 = bxor(rrotate(e, 6), rrotate(e, 11), rrotate(e, 25))
      local t1 = tobit(h + s1 + bxor(band(e, f), band(bnot(e), g)) + K[i] + W[i])
      local s0 = bxor(rrotate(a, 2), rrotate(a, 13), rrotate(a, 22))
      local t2 = tobit(s0 + bxor(band(a, b), band(a, c), band(b, c)))
      h, g, f, e, d, c, b, a = g, f, e, tobit(d + t1), c, b, a, tobit(t1 + t2)
    end
    h0, h1, h2, h3 = tobit(h0 + a), tobit(h1 + b), tobit(h2 + c), tobit(h3 + d)
    h4, h5, h6, h7 = tobit(h4 + e), tobit(h5 + f), tobit(h6 + g), tobit(h7 + h)
  end
  return concat({
    word_bytes(h0), word_bytes(h1), word_bytes(h2), word_bytes(h3),
    word_bytes(h4), word_bytes(h5), word_bytes(h6), word_bytes(h7),
  })
end

-- A bounded table: when the young generation is full it becomes the old one, and the old one is dropped.
local function new_memory()
  local young, old, young_count = {}, {}, 0

  local function remember(key, entry)
    if young[key] == nil then
      if young_count >= MAX_ENTRIES / 2 then
        old, young, young_count = young, {}, 0
      end
      young_count = young_count + 1
    end
    young[key] = entry
  end

  local function recall(key, now)
    local entry = young[key] or old[key]
    if entry ~= nil and entry.expires > now then
      return entry
    end
    return nil
  end

  local function forget(key)
    young[key], old[key] = nil, nil
  end

  return remember, recall, forget
end

local remember_caller, recall_caller = new_memory()

-- What the gateway service would decide on, in its own order of preference; nil when the answer must not be cached.
local function digest_of_credentials(headers)
  local kind, value = "a", headers:get("authorization")
  if value == nil then
    kind, value = "t", headers:get("x-auth-token")
  end
  if value == nil then
    -- A write with a session also needs its csrftoken: such a request is always decided by the gateway service.
    local method = headers:get(":method")
    if method ~= "GET" and method ~= "HEAD" then
      return nil
    end
    kind, value = "c", headers:get("cookie")
  end
  if value == nil or #value > 4096 then
    return nil
  end
  return sha256(SALT .. kind .. value)
end

-- The caller when the credentials are known; else nil, and what `remember_caller_of` needs is noted.
local function caller_of(handle, headers)
  local digest = digest_of_credentials(headers)
  if digest == nil then
    return nil
  end
  local now = handle:timestamp()
  local entry = recall_caller(digest, now)
  if entry == nil then
    local hex = digest:gsub(".", function(c) return ("%02x"):format(byte(c)) end)
    handle:streamInfo():dynamicMetadata():set("dlmesh.auth", "asked", { digest = hex, at = now })
  end
  return entry
end

-- `asked` is what was noted on the request, the rest is the gateway service's verdict.
local function remember_caller_of(asked, user, admin, lifetime_milliseconds)
  local digest = asked.digest:gsub("%x%x", function(hex) return char(tonumber(hex, 16)) end)
  local lifetime = math.min(TTL_MILLISECONDS, lifetime_milliseconds)
  remember_caller(digest, { user = user, admin = admin, expires = asked.at + lifetime })
end

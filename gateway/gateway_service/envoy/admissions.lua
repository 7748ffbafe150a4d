-- May the caller infer with that model, and which version answers? Remembered for as long as the answer says.
-- Follows credentials.lua; `ADMISSION_CLUSTER`, `ADMISSION_PATH` and `ADMISSION_MILLISECONDS` are set above by the
-- renderer.

local floor, sub = math.floor, string.sub
local UNAVAILABLE = 14
-- A new answer is fetched by one request while the others still go by the one before.
local REFRESH_SHARE = 0.7

local remember_admission, recall_admission, forget_admission = new_memory()

local ESCAPES = { b = "\b", f = "\f", n = "\n", r = "\r", t = "\t" }

local function utf8_of(number)
  if number < 128 then
    return char(number)
  elseif number < 2048 then
    return char(192 + floor(number / 64), 128 + number % 64)
  end
  return char(224 + floor(number / 4096), 128 + floor(number / 64) % 64, 128 + number % 64)
end

-- The string under `key` of a JSON object; nil when there is none.
local function json_text(json, key)
  local _, start = json:find('"' .. key .. '":"', 1, true)
  local position = start and start + 1
  while position ~= nil do
    local stop = json:find('["\\]', position)
    if stop == nil then
      return nil
    elseif byte(json, stop) == 34 then
      return (sub(json, start + 1, stop - 1):gsub("\\(.)(%x?%x?%x?%x?)", function(kind, digits)
        if kind == "u" and #digits == 4 then
          return utf8_of(tonumber(digits, 16))
        end
        return (ESCAPES[kind] or kind) .. digits
      end))
    end
    position = stop + 2
  end
  return nil
end

local function read_admission(json, asked_at)
  local shares, total = {}, 0
  for share in (json:match('"shares":%[(.-)%]') or ""):gmatch("{[^}]*}") do
    local version = share:match('"version":(%d+)')
    local percentage = tonumber(share:match('"percentage":(%d+)') or 0)
    if version ~= nil and percentage > 0 then
      shares[#shares + 1] = { version = version, percentage = percentage }
      total = total + percentage
    end
  end
  local lifetime = (tonumber(json:match('"lifetimeSeconds":([%d.eE+-]+)')) or 0) * 1000
  return {
    shares = shares,
    total = total,
    expires = asked_at + lifetime,
    refresh = asked_at + lifetime * REFRESH_SHARE,
  }
end

-- -> entry, or nil and why not: gRPC code, message, seconds after which to come again
local function admit(handle, caller, name, version, is_look)
  local key = concat({ caller.user, caller.admin, name, version, is_look and "look" or "" }, "\n")
  local now = handle:timestamp()
  local entry = recall_admission(key, now)
  if entry ~= nil then
    if now < entry.refresh then
      return entry
    end
    entry.refresh = entry.expires
  end
  local answer, body = handle:httpCall(ADMISSION_CLUSTER, {
    [":method"] = "POST",
    [":path"] = ADMISSION_PATH,
    [":authority"] = "inference",
    ["content-type"] = "application/json",
    ["x-dlmesh-user"] = caller.user,
    ["x-dlmesh-admin"] = caller.admin,
  }, ('{"modelName":"%s","version":"%s","isLook":%s}'):format(name, version, tostring(is_look)), ADMISSION_MILLISECONDS)
  body = body or ""
  if answer[":status"] == "200" then
    entry = read_admission(body, now)
    remember_admission(key, entry)
    return entry
  end
  forget_admission(key)
  local code = tonumber(body:match('^{"code":(%d+)'))
  if code == nil then
    return nil, UNAVAILABLE, "the inference service is away or busy: try again in a moment", "1"
  end
  return nil, code, json_text(body, "message") or "refused", answer["retry-after"]
end

local is_seeded = false

local function choose(handle, entry)
  if entry.total == 0 then
    return nil
  elseif #entry.shares == 1 then
    return entry.shares[1].version
  end
  if not is_seeded then
    math.randomseed(handle:timestamp() % 2147483647)
    is_seeded = true
  end
  local draw = math.random() * entry.total
  for _, share in ipairs(entry.shares) do
    draw = draw - share.percentage
    if draw < 0 then
      return share.version
    end
  end
  return entry.shares[#entry.shares].version
end

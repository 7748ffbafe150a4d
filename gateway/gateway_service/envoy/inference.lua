-- Runs on requests of the Open Inference Protocol, once the caller is known (x-dlmesh-user is set by then, by us only).
--   request:  which model does it mean, may the caller infer with it, and which version answers? The request then names
--             that version and carries the mark without which it has no route to Triton;
--   response: Triton's errors in the shape of the platform's, and "not loaded" as what it is: try again.
-- One table of admissions for each Envoy worker thread. `MARK`, `ADMISSION_CLUSTER`, `ADMISSION_PATH`,
-- `ADMISSION_MILLISECONDS`, `MAX_ENTRIES` and `CODE_OF_STATUS` are set above by the renderer.

local byte, char, concat, floor, sub = string.byte, string.char, table.concat, math.floor, string.sub

local INVALID_ARGUMENT, NOT_FOUND, PERMISSION_DENIED = 3, 5, 7
local RESOURCE_EXHAUSTED, UNIMPLEMENTED, UNAVAILABLE = 8, 12, 14
local STATUS_OF_CODE = {
  [3] = "400", [4] = "504", [5] = "404", [7] = "403", [8] = "429", [10] = "409", [12] = "501", [13] = "500",
  [14] = "503", [16] = "401",
}
local MAX_FIELDS = 4096
local MAX_NAME = 128
-- A new answer is fetched by one request while the others still go by the one before.
local REFRESH_SHARE = 0.7

-- Whether a model must be named: true, or false for what is about the server.
local RPCS = {
  ServerLive = false, ServerReady = false, ServerMetadata = false,
  ModelReady = true, ModelMetadata = true, ModelConfig = true, ModelStatistics = true, ModelInfer = true,
}
local VERBS = { [""] = "GET", ["/ready"] = "GET", ["/config"] = "GET", ["/stats"] = "GET", ["/infer"] = "POST" }
local SERVER_PATHS = { ["/v2"] = true, ["/v2/health/live"] = true, ["/v2/health/ready"] = true }
local KEPT_BACK = {
  repository = true, systemsharedmemory = true, cudasharedmemory = true, trace = true, logging = true,
}
local STREAM_REFUSED = "ModelStreamInfer is not offered: each message of a stream may name another model; use ModelInfer"

local function refuse(handle, is_grpc, code, message)
  local headers = { [":status"] = STATUS_OF_CODE[code] or "500" }
  if is_grpc then
    headers["grpc-status"] = tostring(code)
  end
  if code == UNAVAILABLE or code == RESOURCE_EXHAUSTED then
    headers["retry-after"] = "1"
  end
  handle:respond(headers, message)
end

local function is_name(text)
  return #text <= MAX_NAME and text:find("^%w[%w._-]*$") ~= nil and text:find("..", 1, true) == nil
end

local function is_version(text)
  return text:find("^[1-9]%d?%d?%d?%d?%d?%d?%d?%d?$") ~= nil
end

-- Admissions -------------------------------------------------------------------------------------------------------

-- Two generations bound the table: when the young one is full it becomes the old one, and the old one is dropped.
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

-- -> entry, or nil and why not (gRPC code, message)
local function admit(handle, name, version, is_look)
  local headers = handle:headers()
  local user, admin = headers:get("x-dlmesh-user"), headers:get("x-dlmesh-admin")
  if user == nil or admin == nil then
    return nil, UNAVAILABLE, "the caller is not known"
  end
  local key = concat({ user, admin, name, version, tostring(is_look) }, "\n")
  local now = handle:timestamp()
  local entry = young[key] or old[key]
  if entry ~= nil and now < entry.expires then
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
    ["x-dlmesh-user"] = user,
    ["x-dlmesh-admin"] = admin,
  }, ('{"modelName":"%s","version":"%s","isLook":%s}'):format(name, version, tostring(is_look)), ADMISSION_MILLISECONDS)
  body = body or ""
  if answer[":status"] == "200" then
    entry = read_admission(body, now)
    remember(key, entry)
    return entry
  end
  young[key], old[key] = nil, nil
  local code = tonumber(body:match('^{"code":(%d+)'))
  if code == nil then
    return nil, UNAVAILABLE, "the inference service is away or busy: try again in a moment"
  end
  return nil, code, json_text(body, "message") or "refused"
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

local function version_for(handle, entry, version)
  if version ~= "" then
    return version
  end
  return choose(handle, entry)
end

-- REST -------------------------------------------------------------------------------------------------------------

local function rest_request(handle)
  local headers = handle:headers()
  local path, verb = headers:get(":path"):match("^[^?]*"), headers:get(":method")
  if path == "/v2/" then
    path = "/v2"
  end
  if SERVER_PATHS[path] then
    if verb ~= "GET" then
      return refuse(handle, false, NOT_FOUND, "no such path")
    end
    headers:replace(":path", path)
    headers:replace(MARK, "rest")
    return
  end
  if KEPT_BACK[path:match("^/v2/([^/]*)")] or path:find("^/v2/models/.*/trace/") then
    return refuse(handle, false, PERMISSION_DENIED, "the platform keeps this part of Triton to itself")
  end
  local name, tail = path:match("^/v2/models/([^/]+)(.*)$")
  if name == nil then
    return refuse(handle, false, NOT_FOUND, "no such path")
  end
  local version, operation = tail:match("^/versions/([^/]+)(.*)$")
  version, operation = version or "", operation or tail
  if VERBS[operation] ~= verb or (name == "stats" and tail == "") then
    local message = "no such path; a model has /infer (POST), /ready, /config and /stats"
    return refuse(handle, false, NOT_FOUND, message)
  end
  name = name:gsub("%%(%x%x)", function(hex) return char(tonumber(hex, 16)) end)
  if not is_name(name) then
    return refuse(handle, false, NOT_FOUND, "inference model in the path: it does not exist")
  elseif version ~= "" and not is_version(version) then
    return refuse(handle, false, INVALID_ARGUMENT, "version: it is not valid; allowed: a whole number of at least 1")
  end
  local encoding = headers:get("content-encoding")
  if operation == "/infer" and encoding ~= nil and encoding ~= "" and encoding ~= "identity" then
    return refuse(handle, false, INVALID_ARGUMENT, "content-encoding: a compressed body is not taken; send it as it is")
  end
  local entry, code, message = admit(handle, name, version, operation == "/stats")
  if entry == nil then
    return refuse(handle, false, code, message)
  end
  if operation == "/infer" or operation == "/ready" then
    version = version_for(handle, entry, version)
    if version == nil then
      return refuse(handle, false, UNAVAILABLE, "no version of the inference model answers now")
    end
  end
  headers = handle:headers()
  local versions = version ~= "" and "/versions/" .. version or ""
  headers:replace(":path", "/v2/models/" .. name .. versions .. operation)
  headers:replace(MARK, "rest")
end

-- gRPC -------------------------------------------------------------------------------------------------------------

-- Model and version of a request message: its fields 1 and 2, of each the last. Stricter than a parser has to be: all
-- fields of these messages are below 16 and have a length, so that a tag is one byte, and what else there is is refused.
-- Nothing can then be read otherwise by Triton. -> name, version, or nil
local function read_names(message)
  local name, version, position, length, fields = "", "", 1, #message, 0
  while position <= length do
    local tag = byte(message, position)
    fields = fields + 1
    if tag < 8 or tag > 127 or tag % 8 ~= 2 or fields > MAX_FIELDS then
      return nil
    end
    local size, scale = 0, 1
    repeat
      position = position + 1
      local part = byte(message, position)
      if part == nil or scale > 268435456 then
        return nil
      end
      size = size + part % 128 * scale
      scale = scale * 128
    until part < 128
    position = position + 1
    if size > length - position + 1 then
      return nil
    end
    if tag == 10 or tag == 18 then
      if size > MAX_NAME then
        return nil
      end
      local text = sub(message, position, position + size - 1)
      if tag == 10 then
        name = text
      else
        version = text
      end
    end
    position = position + size
  end
  return name, version
end

local function frame_of(size)
  return char(0, floor(size / 16777216) % 256, floor(size / 65536) % 256, floor(size / 256) % 256, size % 256)
end

-- The one message of a unary call, or nil and why not.
local function read_message(handle)
  local body = handle:body()
  local length = body ~= nil and body:length() or 0
  if length < 5 then
    return nil, INVALID_ARGUMENT, "the request has no message"
  end
  local frame = body:getBytes(0, 5)
  if byte(frame, 1) ~= 0 then
    return nil, UNIMPLEMENTED, "a compressed message is not taken: send it without compression"
  end
  if frame ~= frame_of(length - 5) then
    return nil, INVALID_ARGUMENT, "the request must be one whole message"
  end
  return body:getBytes(5, length - 5)
end

local function grpc_request(handle)
  local headers = handle:headers()
  local content_type = headers:get("content-type") or ""
  local method = headers:get(":path"):match("^/inference%.GRPCInferenceService/(%a+)$")
  if method == "ModelStreamInfer" then
    return refuse(handle, true, UNIMPLEMENTED, STREAM_REFUSED)
  elseif method == nil or RPCS[method] == nil then
    return refuse(handle, true, UNIMPLEMENTED, "the platform keeps this method of Triton to itself")
  elseif content_type ~= "application/grpc" and content_type:sub(1, 22) ~= "application/grpc+proto" then
    return refuse(handle, true, INVALID_ARGUMENT, "content-type: it is not valid; allowed: application/grpc")
  elseif not RPCS[method] then
    headers:replace(MARK, "grpc")
    return
  end
  local message, code, reason = read_message(handle)
  if message == nil then
    return refuse(handle, true, code, reason)
  end
  local name, version = read_names(message)
  if name == nil then
    return refuse(handle, true, INVALID_ARGUMENT, "the message is malformed or has fields that are not known")
  elseif name == "" then
    return refuse(handle, true, INVALID_ARGUMENT, "the name of the model is missing")
  elseif not is_name(name) then
    return refuse(handle, true, NOT_FOUND, "the inference model does not exist")
  elseif version ~= "" and not is_version(version) then
    return refuse(handle, true, INVALID_ARGUMENT, "version: it is not valid; allowed: a whole number of at least 1")
  end
  local entry
  entry, code, reason = admit(handle, name, version, method == "ModelStatistics")
  if entry == nil then
    return refuse(handle, true, code, reason)
  end
  headers = handle:headers()
  if version == "" and (method == "ModelInfer" or method == "ModelReady") then
    version = choose(handle, entry)
    if version == nil then
      return refuse(handle, true, UNAVAILABLE, "no version of the inference model answers now")
    end
    -- The last of a field counts.
    local field = char(18, #version) .. version
    handle:body():setBytes(concat({ frame_of(#message + #field), message, field }))
    headers:remove("content-length")
  end
  headers:replace(MARK, "grpc")
end

function envoy_on_request(handle)
  if sub(handle:headers():get(":path"), 1, 4) == "/inf" then
    grpc_request(handle)
  else
    rest_request(handle)
  end
end

-- Answers ----------------------------------------------------------------------------------------------------------

-- The caller was admitted: what Triton does not know it has not loaded yet, or lost a moment ago.
local function is_not_loaded(message)
  return message:find("^Request for unknown model") ~= nil
    or message:find("not ready", 1, true) ~= nil
    or message:find("not at ready state", 1, true) ~= nil
end

local function grpc_response(headers)
  local code, message = headers:get("grpc-status"), headers:get("grpc-message")
  if code == nil or code == "0" or message == nil then
    return
  end
  if message == "Payload Too Large" then
    headers:replace("grpc-status", tostring(RESOURCE_EXHAUSTED))
  elseif is_not_loaded(message) then
    headers:replace("grpc-status", tostring(UNAVAILABLE))
    headers:replace("retry-after", "1")
  end
end

function envoy_on_response(handle)
  local headers = handle:headers()
  local content_type = headers:get("content-type")
  if content_type ~= nil and sub(content_type, 1, 16) == "application/grpc" then
    return grpc_response(headers)
  end
  local status = headers:get(":status")
  if status < "400" then
    return
  end
  local body = handle:body()
  local text = body ~= nil and body:getBytes(0, body:length()) or ""
  -- Still escaped, as it goes out again.
  local message = text:match('^{"error":"(.*)"}%s*$')
  if message == nil then
    return
  end
  if is_not_loaded(message) then
    status = "503"
  elseif message:find("^Unable to parse") or message:find("^failed to parse the request") then
    status = "400"
  end
  local size = body:setBytes(
    ('{"code":%d,"message":"%s","details":[],"error":"%s"}'):format(CODE_OF_STATUS[status] or 13, message, message)
  )
  headers = handle:headers()
  headers:replace(":status", status)
  headers:replace("content-type", "application/json")
  headers:replace("content-length", tostring(size))
  if status == "503" then
    headers:replace("retry-after", "1")
  end
end

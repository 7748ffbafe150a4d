-- Runs on requests of the Open Inference Protocol.
--   request:  who calls, which model is meant, may the caller infer with it, and which version answers? The request
--             then names that version and carries the mark that is its way to Triton;
--   response: Triton's errors in the shape of the platform's, and "not loaded" as what it is: try again.
-- The script of the public listener lets callers that it does not know pass without the mark: to a listener inside,
-- where the same script (`IS_INSIDE`) runs after ext_authz and tells the one before, in headers of its answer, who it
-- was. Follows credentials.lua and admissions.lua; `MARK` and its values, `IS_INSIDE`, `MAX_BYTES` and `CODE_OF_STATUS`
-- are set above by the renderer.

local INVALID_ARGUMENT, NOT_FOUND, PERMISSION_DENIED = 3, 5, 7
local RESOURCE_EXHAUSTED, UNIMPLEMENTED = 8, 12
local STATUS_OF_CODE = {
  [3] = "400", [4] = "504", [5] = "404", [7] = "403", [8] = "429", [10] = "409", [12] = "501", [13] = "500",
  [14] = "503", [16] = "401",
}
local MAX_FIELDS = 4096
local MALFORMED = "the message is malformed or has fields that are not known"
local MAX_NAME = 128
local LARGE_BYTES = 16 * 1024 * 1024

local GRPC_PREFIX = "/inference.GRPCInferenceService/"
local STREAM, INFER = GRPC_PREFIX .. "ModelStreamInfer", GRPC_PREFIX .. "ModelInfer"
local READY, STATISTICS = GRPC_PREFIX .. "ModelReady", GRPC_PREFIX .. "ModelStatistics"
-- Whether a model must be named: true, or false for what is about the server.
local RPCS = {
  [INFER] = true, [READY] = true, [STATISTICS] = true,
  [GRPC_PREFIX .. "ModelMetadata"] = true, [GRPC_PREFIX .. "ModelConfig"] = true,
  [GRPC_PREFIX .. "ServerLive"] = false, [GRPC_PREFIX .. "ServerReady"] = false,
  [GRPC_PREFIX .. "ServerMetadata"] = false,
}
local VERBS = { [""] = "GET", ["/ready"] = "GET", ["/config"] = "GET", ["/stats"] = "GET", ["/infer"] = "POST" }
local SERVER_PATHS = { ["/v2"] = true, ["/v2/health/live"] = true, ["/v2/health/ready"] = true }
local KEPT_BACK = {
  repository = true, systemsharedmemory = true, cudasharedmemory = true, trace = true, logging = true,
}
local NO_VERSION = "no version of the inference model answers now"
local TOO_LARGE = ("body: it is too large; allowed: at most %d bytes"):format(MAX_BYTES)
local STREAM_REFUSED =
  "ModelStreamInfer is not offered: each message of a stream may name another model; use ModelInfer"

local function refuse(handle, is_grpc, code, message, retry_after, status)
  local headers = { [":status"] = status or STATUS_OF_CODE[code] or "500", ["retry-after"] = retry_after }
  if is_grpc then
    headers["grpc-status"] = tostring(code)
  end
  handle:respond(headers, message)
end

local function is_name(text)
  return #text <= MAX_NAME and text:find("^%w[%w._-]*$") ~= nil and text:find("..", 1, true) == nil
end

local function is_version(text)
  return text:find("^[1-9]%d?%d?%d?%d?%d?%d?%d?%d?$") ~= nil
end

-- REST -------------------------------------------------------------------------------------------------------------

-- Code, message and status why the body of a request is refused; nil when it is not. Held bodies that are much too large
-- Envoy refuses.
local function refusal_of_body(handle, headers)
  if (tonumber(headers:get("content-length") or "0") or 0) > MAX_BYTES then
    return RESOURCE_EXHAUSTED, TOO_LARGE, "413"
  end
  local length_of_json = headers:get("inference-header-content-length")
  local body = handle:body()
  local size = body ~= nil and body:length() or 0
  if size > MAX_BYTES then
    return RESOURCE_EXHAUSTED, TOO_LARGE, "413"
  end
  local json_size = size
  if length_of_json ~= nil then
    json_size = length_of_json:find("^%d+$") and tonumber(length_of_json) or size + 1
  end
  if json_size > size then
    return INVALID_ARGUMENT, "inference-header-content-length: it is not valid; allowed: at most the length of the body"
  elseif json_size > 0 then
    local wrong = what_is_wrong(body:getBytes(0, json_size), size)
    return wrong and INVALID_ARGUMENT, wrong
  end
end

local function rest_request(handle, headers, caller, full_path)
  local path, verb = full_path:match("^[^?]*"), headers:get(":method")
  if path == "/v2/" then
    path = "/v2"
  end
  if SERVER_PATHS[path] then
    if verb ~= "GET" then
      return refuse(handle, false, NOT_FOUND, "no such path")
    end
    headers:replace(":path", path)
    headers:replace(MARK, REST_MARK)
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
  local entry, code, message, status, retry_after
  if operation == "/infer" then
    code, message, status = refusal_of_body(handle, headers)
    if code then
      return refuse(handle, false, code, message, nil, status)
    end
  end
  entry, code, message, retry_after = admit(handle, caller, name, version, operation == "/stats")
  if entry == nil then
    return refuse(handle, false, code, message, retry_after)
  end
  if version == "" and (operation == "/infer" or operation == "/ready") then
    version = choose(handle, entry)
    if version == nil then
      return refuse(handle, false, UNAVAILABLE, NO_VERSION, "1")
    end
  end
  headers = handle:headers()
  local versions = version ~= "" and "/versions/" .. version or ""
  local asked_path = "/v2/models/" .. name .. versions .. operation
  if asked_path ~= full_path then
    -- The access log shows what the client sent.
    headers:replace("x-envoy-original-path", path)
    headers:replace(":path", asked_path)
  end
  headers:replace(MARK, REST_MARK)
end

-- gRPC -------------------------------------------------------------------------------------------------------------

-- Model and version of a request message: its fields 1 and 2, of each the last. Stricter than a parser has to be: all
-- fields of these messages are below 16 and have a length, so that a tag is one byte; what else there is is refused.
-- Nothing can then be read otherwise by Triton. -> name, version, or nil and why
local function read_names(message)
  local name, version, position, length, fields = "", "", 1, #message, 0
  while position <= length do
    local tag = byte(message, position)
    fields = fields + 1
    if tag < 8 or tag > 127 or tag % 8 ~= 2 or fields > MAX_FIELDS then
      return nil, MALFORMED
    end
    local size, scale = 0, 1
    repeat
      position = position + 1
      local part = byte(message, position)
      if part == nil or scale > 268435456 then
        return nil, MALFORMED
      end
      size = size + part % 128 * scale
      scale = scale * 128
    until part < 128
    position = position + 1
    if size > length - position + 1 then
      return nil, MALFORMED
    end
    if tag == 50 and names_classes_of_text(sub(message, position, position + size - 1)) then
      return nil, TEXT_HAS_NO_CLASSES
    elseif tag == 10 or tag == 18 then
      if size > MAX_NAME then
        return nil, MALFORMED
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

-- Envoy does not count what Lua holds: what was large goes now, and not when Lua comes to it.
local function collect(size)
  if size > LARGE_BYTES then
    collectgarbage()
  end
end

-- The one message of a unary call, or nil and why not.
local function read_message(handle)
  local body = handle:body()
  local length = body ~= nil and body:length() or 0
  if length < 5 then
    return nil, INVALID_ARGUMENT, "the request has no message"
  elseif length > MAX_BYTES then
    return nil, RESOURCE_EXHAUSTED, TOO_LARGE
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

local function grpc_request(handle, headers, caller, path)
  local content_type, needs_model = headers:get("content-type") or "", RPCS[path]
  if path == STREAM then
    return refuse(handle, true, UNIMPLEMENTED, STREAM_REFUSED)
  elseif needs_model == nil then
    return refuse(handle, true, UNIMPLEMENTED, "the platform keeps this method of Triton to itself")
  elseif content_type ~= "application/grpc" and content_type:sub(1, 22) ~= "application/grpc+proto" then
    return refuse(handle, true, INVALID_ARGUMENT, "content-type: it is not valid; allowed: application/grpc")
  elseif not needs_model then
    headers:replace(MARK, GRPC_MARK)
    return
  end
  local message, code, reason = read_message(handle)
  if message == nil then
    return refuse(handle, true, code, reason)
  end
  local name, version = read_names(message)
  -- Envoy holds these bytes, too, and admission may wait for a model that is being loaded.
  local size = #message
  message = nil
  collect(size)
  if name == nil then
    return refuse(handle, true, INVALID_ARGUMENT, version)
  elseif name == "" then
    return refuse(handle, true, INVALID_ARGUMENT, "the name of the model is missing")
  elseif not is_name(name) then
    return refuse(handle, true, NOT_FOUND, "the inference model does not exist")
  elseif version ~= "" and not is_version(version) then
    return refuse(handle, true, INVALID_ARGUMENT, "version: it is not valid; allowed: a whole number of at least 1")
  end
  local entry, retry_after
  entry, code, reason, retry_after = admit(handle, caller, name, version, path == STATISTICS)
  if entry == nil then
    return refuse(handle, true, code, reason, retry_after)
  end
  headers = handle:headers()
  if version == "" and (path == INFER or path == READY) then
    version = choose(handle, entry)
    if version == nil then
      return refuse(handle, true, UNAVAILABLE, NO_VERSION, "1")
    end
    -- The last of a field counts.
    local field, body = char(18, #version) .. version, handle:body()
    body:setBytes(concat({ frame_of(size + #field), body:getBytes(5, size), field }))
    headers:remove("content-length")
    collect(size)
  end
  headers:replace(MARK, GRPC_MARK)
end

-- ext_authz set these headers; what a client sends under such names the public listener drops.
local function caller_inside(headers)
  local user = headers:get("x-dlmesh-user")
  return user ~= nil and { user = user, admin = headers:get("x-dlmesh-admin") or "0" } or nil
end

function envoy_on_request(handle)
  local headers = handle:headers()
  -- A body of unknown length that turns out too large may leave its sender waiting for minutes.
  local is_grpc = sub(headers:get(":path"), 1, #GRPC_PREFIX) == GRPC_PREFIX
  if not is_grpc and headers:get(":method") == "POST" and headers:get("content-length") == nil then
    return refuse(handle, false, INVALID_ARGUMENT, "content-length: it is missing; send the body whole, not in chunks")
  end
  local caller
  if IS_INSIDE then
    caller = caller_inside(headers)
  else
    caller = caller_of(handle, headers)
  end
  if caller == nil then
    return
  end
  headers:replace("x-dlmesh-user", caller.user)
  local path = headers:get(":path")
  if sub(path, 1, #GRPC_PREFIX) == GRPC_PREFIX then
    return grpc_request(handle, headers, caller, path)
  end
  return rest_request(handle, headers, caller, path)
end

-- Answers ----------------------------------------------------------------------------------------------------------

-- Triton's own messages whole or from their start: a model, too, may say of something that it is not ready.
local function without_request(message)
  return (message:gsub("^%[request id: .-%] ", ""))
end

-- The caller was admitted: what Triton does not know it has not loaded yet, or lost a moment ago.
local NOT_LOADED = { ["Server not ready"] = true, ["Model version not ready"] = true }
local AWAY = "the inference model is not in memory now and is being loaded: try again in a moment"

-- Perhaps: Triton says the same of what the process had in hand when it ended and of what comes after.
local ENDED = "the process of the inference model ended, perhaps over this request; it is being loaded again"

-- What the caller is told of a model that is not there; nil when the message is about something else.
local function said_of_absence(message)
  if message:find("^Request for unknown model") or NOT_LOADED[without_request(message)] then
    return AWAY
  elseif message:find("Stub process '[^']*' is not healthy%.$") then
    return ENDED
  end
end

local FULL = "too many requests wait for the inference model: try again in a moment"

local function is_queue_full(message)
  return without_request(message) == "Exceeds maximum queue size"
end

local function grpc_response(headers)
  local code, message = headers:get("grpc-status"), headers:get("grpc-message")
  if code == nil or code == "0" or message == nil then
    return
  end
  local absence = said_of_absence(message)
  if message == "Payload Too Large" then
    headers:replace("grpc-status", tostring(RESOURCE_EXHAUSTED))
    headers:replace("grpc-message", TOO_LARGE)
  elseif absence ~= nil then
    headers:replace("grpc-status", tostring(UNAVAILABLE))
    headers:replace("grpc-message", absence)
    headers:replace("retry-after", "1")
  elseif is_queue_full(message) then
    headers:replace("grpc-status", tostring(UNAVAILABLE))
    headers:replace("grpc-message", FULL)
    headers:replace("retry-after", "1")
  end
end

-- Headers that go from the script inside to the one before.
local VERDICT = { user = "x-dlmesh-user", admin = "x-dlmesh-admin", lifetime = "x-dlmesh-lifetime" }

local function tell_verdict(handle, headers)
  local verdict = handle:streamInfo():dynamicMetadata():get("envoy.filters.http.ext_authz")
  if verdict ~= nil and verdict.user ~= nil then
    headers:replace(VERDICT.user, verdict.user)
    headers:replace(VERDICT.admin, verdict.admin)
    headers:replace(VERDICT.lifetime, tostring(verdict.lifetime_milliseconds))
  end
end

local function hear_verdict(handle, headers, user)
  local metadata = handle:streamInfo():dynamicMetadata()
  local own = metadata:get("dlmesh.auth")
  if own ~= nil and own.asked ~= nil then
    local lifetime = headers:get(VERDICT.lifetime)
    remember_caller_of(own.asked, user, headers:get(VERDICT.admin), tonumber(lifetime) or 0)
  end
  -- For the access log.
  metadata:set("dlmesh.auth", "user", user)
  for _, name in pairs(VERDICT) do
    headers:remove(name)
  end
end

function envoy_on_response(handle)
  local headers = handle:headers()
  if IS_INSIDE then
    tell_verdict(handle, headers)
  else
    local user = headers:get(VERDICT.user)
    if user ~= nil then
      return hear_verdict(handle, headers, user)
    end
  end
  local status = headers:get(":status")
  if status < "400" then
    if headers:get("grpc-status") ~= nil then
      grpc_response(headers)
    end
    return
  end
  local body = handle:body()
  local text = body ~= nil and body:getBytes(0, body:length()) or ""
  -- Still escaped, as it goes out again.
  local message = text:match('^{"error":"(.*)"}%s*$')
  if message == nil then
    return
  end
  local absence = said_of_absence(message)
  if absence ~= nil then
    status, message = "503", absence
  elseif is_queue_full(message) then
    status, message = "429", FULL
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
  if status == "503" or status == "429" then
    headers:replace("retry-after", "1")
  end
end

-- Runs first on a request and last on a response.
--   request:  recognise credentials that the gateway service verified a moment ago, so that it is not asked again;
--   response: remember what it verified, and apply the HTTP status that the contract asks for.
-- `WIRE_NAMES` is set above by the renderer, after credentials.lua.

function envoy_on_request(handle)
  local headers = handle:headers()
  local caller = caller_of(handle, headers)
  if caller == nil then
    return
  end
  headers:remove("authorization")
  headers:remove("x-auth-token")
  headers:remove("cookie")
  headers:replace("x-dlmesh-user", caller.user)
  headers:replace("x-dlmesh-admin", caller.admin)
  handle:streamInfo():dynamicMetadata():set("dlmesh.auth", "verified", true)
end

local function remember_verdict(handle)
  local metadata = handle:streamInfo():dynamicMetadata()
  local own = metadata:get("dlmesh.auth")
  local verdict = metadata:get("envoy.filters.http.ext_authz")
  if own ~= nil and own.asked ~= nil and verdict ~= nil and verdict.user ~= nil then
    remember_caller_of(own.asked, verdict.user, verdict.admin, verdict.lifetime_milliseconds)
  end
end

-- A body that does not fit its message is refused by the transcoder, which calls the field by its proto name
-- ("image_options.height: invalid value ..."): call it as the client did.
local function name_field_as_sent(handle)
  local body = handle:body()
  if body == nil then
    return
  end
  local text = body:getBytes(0, body:length())
  local start, field, rest = text:match('^({"code":3,"details":%[%],"message":")([%w_%.%[%]]+)(: .*)$')
  if field == nil then
    return
  end
  field = field:gsub("[%w_]+", function(name) return WIRE_NAMES[name] end)
  local size = body:setBytes(start .. field .. rest)
  handle:headers():replace("content-length", tostring(size))
end

function envoy_on_response(handle)
  remember_verdict(handle)
  local headers = handle:headers()
  -- A gRPC client keeps its gRPC answer: there the HTTP status is always 200.
  local content_type = headers:get("content-type")
  local code, empty = headers:get("x-http-code"), headers:get("x-http-empty")
  if content_type ~= nil and content_type:sub(1, 16) == "application/grpc" then
    return
  end
  headers:remove("x-http-code")
  headers:remove("x-http-empty")
  headers:remove("grpc-status")
  headers:remove("grpc-message")
  headers:remove("grpc-accept-encoding")
  if code ~= nil then
    headers:replace(":status", code)
  end
  if headers:get(":status") == "400" and code == nil then
    name_field_as_sent(handle)
    return
  end
  if empty ~= nil or code == "204" then
    local body = handle:body()
    if body ~= nil then
      body:setBytes("")
    end
    -- The headers above are out of scope once the body was waited for.
    headers = handle:headers()
    headers:remove("content-type")
    headers:replace("content-length", "0")
    if code == "204" then
      headers:remove("content-length")
    end
  end
end

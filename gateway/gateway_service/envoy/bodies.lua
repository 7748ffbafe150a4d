-- What Triton must not be sent: requests on which it ends, or takes all of the memory.
--   Over REST it makes room for as many elements as a shape says before it looks how many there are, and follows brackets to
--   any depth. Over either it counts the classes of texts as if they were numbers.

local min = math.min
local MAX_DEPTH = 32
-- Longer strings are no word of the protocol.
local MAX_WORD = 64
local TEXT_HAS_NO_CLASSES = "classification: RESULT is a text and has no classes; allowed: OUTPUT__0"

-- Of an output that a message asks for.
local function names_classes_of_text(output)
  return output:find("classification", 1, true) ~= nil and output:find("RESULT", 1, true) ~= nil
end

-- Where the next of a sign is from `position` on; behind the end when there is none. `known` was the next of an earlier
-- position: what lies between is not searched again.
local function next_of(text, sign, known, position)
  if known >= position then
    return known
  end
  return text:find(sign, position, true) or #text + 1
end

-- The end of the string that begins at `start`; nil when it has none.
local function string_end(text, start)
  local stop = start
  while true do
    stop = text:find('"', stop + 1, true)
    if stop == nil then
      return nil
    end
    local before = stop - 1
    while byte(text, before) == 92 do
      before = before - 1
    end
    if (stop - before) % 2 == 1 then
      return stop
    end
  end
end

local function what_is_wrong_with_shape(text, position, size)
  local numbers = text:match("^%s*:%s*%[([%d%s,]*)%]", position)
  if numbers == nil then
    return "shape: it is not valid; allowed: a list of whole numbers"
  end
  local elements = 1
  for number in numbers:gmatch("%d+") do
    elements = elements * tonumber(number)
  end
  -- An element takes a byte at least.
  if elements > size then
    return ("shape: %.15g elements are more than the %d bytes of the request can hold"):format(elements, size)
  end
  return nil
end

-- nil, or what is wrong with a body of `size` bytes whose JSON is `text`.
local function what_is_wrong(text, size)
  local position, depth = 1, 0
  local quote, escape, open_list, close_list, open_object, close_object = 0, 0, 0, 0, 0, 0
  local has_classes, names_text = false, false
  while true do
    quote = next_of(text, '"', quote, position)
    open_list, close_list = next_of(text, "[", open_list, position), next_of(text, "]", close_list, position)
    open_object, close_object = next_of(text, "{", open_object, position), next_of(text, "}", close_object, position)
    local start = min(quote, open_list, close_list, open_object, close_object)
    if start > #text then
      break
    end
    position = start + 1
    if start == quote then
      local stop = string_end(text, start)
      if stop == nil then
        return "the body is no JSON: a string has no end"
      end
      escape = next_of(text, "\\", escape, position)
      local has_escape = escape < stop
      position = stop + 1
      local is_key = text:find("^%s*:", position) ~= nil
      local word = stop - start <= MAX_WORD and sub(text, start + 1, stop - 1) or ""
      if is_key and has_escape then
        return "the body has a key with an escape, which no key of the protocol needs"
      elseif is_key and word == "shape" then
        local wrong = what_is_wrong_with_shape(text, position, size)
        if wrong ~= nil then
          return wrong
        end
      end
      has_classes = has_classes or (is_key and word == "classification")
      names_text = names_text or word == "RESULT" or (has_escape and word ~= "")
    elseif start == open_list or start == open_object then
      depth = depth + 1
      if depth > MAX_DEPTH then
        return ("the body is nested deeper than %d"):format(MAX_DEPTH)
      end
    else
      depth = depth - 1
    end
  end
  if has_classes and names_text then
    return TEXT_HAS_NO_CLASSES
  end
  return nil
end

-- The health of a WorkflowRunStop for Argo CD, from the conditions that the operator writes.
local function condition(kind)
  for _, found in ipairs(obj.status.conditions) do
    if found.type == kind then
      return found
    end
  end
  return { status = "Unknown", reason = "", message = "" }
end

if obj.status == nil or obj.status.conditions == nil or obj.status.observedGeneration ~= obj.metadata.generation then
  return { status = "Progressing", message = "the operator has not seen it yet" }
end

local ready = condition("Ready")
local health = "Progressing"
if condition("Stalled").status == "True" then
  health = "Degraded"
elseif ready.status == "True" then
  health = "Healthy"
elseif ready.reason == "Suspended" then
  health = "Suspended"
end
return { status = health, message = ready.reason .. ": " .. ready.message }

// Holds what GitOps tools make of every state of a WorkflowRunStop: Flux by kstatus, Argo CD by the health script
// of docs/argocd. The states are written by the operator's own code (tests/gitops.rs), the verdicts are the table of
// docs/gitops.md.
package gitops

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	lua "github.com/yuin/gopher-lua"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/cli-utils/pkg/kstatus/status"
)

type state struct {
	Name     string         `json:"name"`
	Resource map[string]any `json:"resource"`
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// verdicts reads the rows "| state | Flux | Argo CD |" of the document.
func verdicts(t *testing.T) map[string][2]string {
	rows := map[string][2]string{}
	for line := range strings.Lines(read(t, "../../docs/gitops.md")) {
		cells := strings.Split(line, "|")
		if len(cells) == 5 && !strings.Contains(line, "---") && !strings.Contains(line, "Flux") {
			rows[strings.TrimSpace(cells[1])] = [2]string{strings.TrimSpace(cells[2]), strings.TrimSpace(cells[3])}
		}
	}
	return rows
}

func flux(t *testing.T, resource map[string]any) string {
	result, err := status.Compute(&unstructured.Unstructured{Object: resource})
	if err != nil {
		t.Fatal(err)
	}
	return string(result.Status)
}

// argo runs the script as Argo CD does: the object is the global obj, and of Lua's libraries only the basic ones are there.
func argo(t *testing.T, script string, resource map[string]any) string {
	machine := lua.NewState(lua.Options{SkipOpenLibs: true})
	defer machine.Close()
	for name, library := range map[string]lua.LGFunction{
		lua.BaseLibName: lua.OpenBase, lua.TabLibName: lua.OpenTable, lua.StringLibName: lua.OpenString,
	} {
		machine.Push(machine.NewFunction(library))
		machine.Push(lua.LString(name))
		machine.Call(1, 0)
	}
	machine.SetGlobal("obj", value(machine, resource))
	if err := machine.DoString(script); err != nil {
		t.Fatal(err)
	}
	health := machine.Get(-1).(*lua.LTable)
	if message := health.RawGetString("message").String(); message == "" {
		t.Error("no message")
	}
	return health.RawGetString("status").String()
}

func value(machine *lua.LState, from any) lua.LValue {
	switch from := from.(type) {
	case map[string]any:
		table := machine.NewTable()
		for key, item := range from {
			table.RawSetString(key, value(machine, item))
		}
		return table
	case []any:
		table := machine.NewTable()
		for _, item := range from {
			table.Append(value(machine, item))
		}
		return table
	case string:
		return lua.LString(from)
	case bool:
		return lua.LBool(from)
	case int64:
		return lua.LNumber(from)
	case float64:
		return lua.LNumber(from)
	default:
		return lua.LNil
	}
}

// numbers turns what JSON has as float64 into int64, as the clients of an API server have it.
func numbers(from any) any {
	switch from := from.(type) {
	case map[string]any:
		for key, item := range from {
			from[key] = numbers(item)
		}
	case []any:
		for index, item := range from {
			from[index] = numbers(item)
		}
	case float64:
		return int64(from)
	}
	return from
}

func TestEveryStateIsJudgedAsTheDocumentSays(t *testing.T) {
	var states []state
	if err := json.Unmarshal([]byte(read(t, "states.json")), &states); err != nil {
		t.Fatal(err)
	}
	expected, script := verdicts(t), read(t, "../../docs/argocd/health.lua")
	if len(states) != len(expected) {
		t.Errorf("%d states, and %d rows in docs/gitops.md", len(states), len(expected))
	}
	for _, state := range states {
		t.Run(state.Name, func(t *testing.T) {
			row, known := expected[state.Name]
			if !known {
				t.Fatal("it has no row in docs/gitops.md")
			}
			resource := numbers(state.Resource).(map[string]any)
			if judged := [2]string{flux(t, resource), argo(t, script, resource)}; judged != row {
				t.Errorf("judged as %v, and docs/gitops.md says %v", judged, row)
			}
		})
	}
}

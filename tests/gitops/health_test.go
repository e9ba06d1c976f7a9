// Package gitops tests the health that GitOps tools compute for every state of a WorkflowRunStop: Flux with kstatus,
// Argo CD with the health script of docs/argocd. The states are written by the operator's own code (tests/pure/gitops.rs);
// the expected health is the table of docs/gitops.md.
package gitops

import (
	"context"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	flux "github.com/fluxcd/cli-utils/pkg/kstatus/status"
	lua "github.com/yuin/gopher-lua"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	kstatus "sigs.k8s.io/cli-utils/pkg/kstatus/status"
)

type state struct {
	Name     string                    `json:"name"`
	Resource unstructured.Unstructured `json:"resource"`
}

type health struct{ flux, argo string }

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// expectedHealth reads the rows "| state | Flux | Argo CD |" of the document.
func expectedHealth(t *testing.T) map[string]health {
	rows := map[string]health{}
	_, table, _ := strings.Cut(read(t, "../../docs/gitops.md"), "\n| --- | --- | --- |\n")
	for line := range strings.Lines(table) {
		cells := strings.Split(strings.TrimSpace(line), " | ")
		if len(cells) != 3 {
			break
		}
		name := strings.TrimPrefix(cells[0], "| ")
		if _, known := rows[name]; known {
			t.Errorf("docs/gitops.md has two rows %q", name)
		}
		rows[name] = health{cells[1], strings.TrimSuffix(cells[2], " |")}
	}
	return rows
}

// fluxHealth computes the status with Flux's own copy of kstatus, which has to agree with the original.
func fluxHealth(t *testing.T, resource *unstructured.Unstructured) string {
	computed, err := flux.Compute(resource)
	if err != nil {
		t.Fatal(err)
	}
	original, err := kstatus.Compute(resource)
	if err != nil {
		t.Fatal(err)
	}
	if computed.Status.String() != original.Status.String() {
		t.Errorf("%s for Flux, and %s for kstatus", computed.Status, original.Status)
	}
	return computed.Status.String()
}

// argoHealth runs the script as Argo CD does: within a second, with the resource in the global obj, and with these
// libraries only. A resource being deleted is Progressing whatever the script returns, unless it is a hook.
func argoHealth(t *testing.T, script string, resource *unstructured.Unstructured) string {
	machine := lua.NewState(lua.Options{SkipOpenLibs: true})
	defer machine.Close()
	for _, open := range []lua.LGFunction{lua.OpenPackage, lua.OpenBase, lua.OpenTable} {
		machine.Push(machine.NewFunction(open))
		machine.Call(0, 0)
	}
	limit, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	machine.SetContext(limit)
	machine.SetGlobal("obj", value(machine, resource.Object))
	if err := machine.DoString(script); err != nil {
		t.Fatal(err)
	}
	result, ok := machine.Get(-1).(*lua.LTable)
	if !ok {
		t.Fatalf("the script returns a %s", machine.Get(-1).Type())
	}
	if message, ok := result.RawGetString("message").(lua.LString); !ok || strings.Trim(string(message), ": ") == "" {
		t.Errorf("no message: %v", result.RawGetString("message"))
	}
	status := result.RawGetString("status").String()
	if !slices.Contains([]string{"Healthy", "Progressing", "Degraded", "Suspended"}, status) {
		t.Errorf("%q is not a health status", status)
	}
	if resource.GetDeletionTimestamp() != nil {
		return "Progressing"
	}
	return status
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

func TestEveryStateHasTheDocumentedHealth(t *testing.T) {
	var states []state
	if err := json.Unmarshal([]byte(read(t, "states.json")), &states); err != nil {
		t.Fatal(err)
	}
	expected, script := expectedHealth(t), read(t, "../../docs/argocd/health.lua")
	if len(states) == 0 || len(states) != len(expected) {
		t.Errorf("%d states, and %d rows in docs/gitops.md", len(states), len(expected))
	}
	for _, state := range states {
		t.Run(state.Name, func(t *testing.T) {
			row, known := expected[state.Name]
			if !known {
				t.Fatal("no row in docs/gitops.md")
			}
			actual := health{fluxHealth(t, &state.Resource), argoHealth(t, script, &state.Resource)}
			if actual != row {
				t.Errorf("%v, and docs/gitops.md says %v", actual, row)
			}
		})
	}
}

// The CRD of the cluster may be older than the default of its status.
func TestArgoShowsAStopWithoutStatusAsProgressing(t *testing.T) {
	resource := &unstructured.Unstructured{Object: map[string]any{"metadata": map[string]any{"generation": int64(1)}}}
	if actual := argoHealth(t, read(t, "../../docs/argocd/health.lua"), resource); actual != "Progressing" {
		t.Errorf("health %s", actual)
	}
}

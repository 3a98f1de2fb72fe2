// An oracle for server-side apply: reads cases as JSON lines, runs them with the original structured-merge-diff library
// (merge.Updater, as kube-apiserver does), and writes what came of each step as a JSON line. Managers are keyed by name
// and operation, as kube-apiserver keys them. No state is kept between lines.
package main

import (
	"bufio"
	"encoding/json"
	"os"

	"sigs.k8s.io/structured-merge-diff/v4/fieldpath"
	"sigs.k8s.io/structured-merge-diff/v4/merge"
	"sigs.k8s.io/structured-merge-diff/v4/typed"
)

const version = fieldpath.APIVersion("x/v1")

type step struct {
	Op      string      `json:"op"`
	Manager string      `json:"manager"`
	Force   bool        `json:"force"`
	Object  interface{} `json:"object"`
}

type testCase struct {
	Schema string `json:"schema"`
	Steps  []step `json:"steps"`
}

type outcome struct {
	Error     string                     `json:"error,omitempty"`
	Conflicts map[string]json.RawMessage `json:"conflicts,omitempty"`
	Counts    map[string]int             `json:"counts,omitempty"`
	Object    interface{}                `json:"object"`
	Managers  map[string]json.RawMessage `json:"managers"`
}

// One version only: nothing is to be converted.
type sameVersion struct{}

func (sameVersion) Convert(object *typed.TypedValue, _ fieldpath.APIVersion) (*typed.TypedValue, error) {
	return object, nil
}

func (sameVersion) IsMissingVersionError(error) bool { return false }

func sets(managers fieldpath.ManagedFields) map[string]json.RawMessage {
	found := map[string]json.RawMessage{}
	for name, managed := range managers {
		text, err := managed.Set().ToJSON()
		if err != nil {
			panic(err)
		}
		found[name] = text
	}
	return found
}

func run(one testCase) []outcome {
	parser, err := typed.NewParser(typed.YAMLObject(one.Schema))
	if err != nil {
		panic(err)
	}
	kind := parser.Type("root")
	live, err := kind.FromUnstructured(map[string]interface{}{})
	if err != nil {
		panic(err)
	}
	managers := fieldpath.ManagedFields{}
	outcomes := []outcome{}
	for _, each := range one.Steps {
		updater := merge.Updater{Converter: sameVersion{}}
		result := outcome{}
		given, err := kind.FromUnstructured(each.Object)
		if err == nil {
			var next *typed.TypedValue
			var after fieldpath.ManagedFields
			name := each.Manager + "/" + each.Op
			if each.Op == "Apply" {
				next, after, err = updater.Apply(live, given, version, managers.Copy(), name, each.Force)
			} else {
				next, after, err = updater.Update(live, given, version, managers.Copy(), name)
			}
			if err == nil {
				managers = after
				if next != nil {
					live = next
				}
			}
		}
		if conflicts, ok := err.(merge.Conflicts); ok {
			// This version's Conflicts share the memory of their paths, so that they name wrong ones. Their number is
			// right, and what the others lose when it is forced is where they conflict, and what is removed below.
			result.Counts = map[string]int{}
			for _, each := range conflicts {
				result.Counts[each.Manager]++
			}
			_, forced, err := updater.Apply(live, given, version, managers.Copy(), each.Manager+"/Apply", true)
			if err != nil {
				panic(err)
			}
			lost := fieldpath.ManagedFields{}
			for name, managed := range managers {
				set := managed.Set()
				if left, found := forced[name]; found {
					set = set.Difference(left.Set())
				}
				if name != each.Manager+"/Apply" && !set.Empty() {
					lost[name] = fieldpath.NewVersionedSet(set, version, false)
				}
			}
			result.Conflicts = sets(lost)
		} else if err != nil {
			result.Error = err.Error()
		}
		result.Object = live.AsValue().Unstructured()
		result.Managers = sets(managers)
		outcomes = append(outcomes, result)
	}
	return outcomes
}

func main() {
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(make([]byte, 1<<20), 1<<24)
	out := bufio.NewWriter(os.Stdout)
	defer out.Flush()
	for in.Scan() {
		var one testCase
		if err := json.Unmarshal(in.Bytes(), &one); err != nil {
			panic(err)
		}
		text, err := json.Marshal(run(one))
		if err != nil {
			panic(err)
		}
		out.Write(append(text, '\n'))
	}
}

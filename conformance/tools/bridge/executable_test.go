// The verbs of the test suite, performed by the executable in PLUGIN, or by the reference if it is not set.

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"

	. "github.com/onsi/ginkgo/v2"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
)

func cmdAdd(args *skel.CmdArgs) error    { return perform("ADD", args, referenceAdd) }
func cmdCheck(args *skel.CmdArgs) error  { return perform("CHECK", args, referenceCheck) }
func cmdDel(args *skel.CmdArgs) error    { return perform("DEL", args, referenceDel) }
func cmdStatus(args *skel.CmdArgs) error { return perform("STATUS", args, referenceStatus) }

func perform(verb string, args *skel.CmdArgs, reference func(*skel.CmdArgs) error) (failure error) {
	// The report tells which specs ask the plugin at all, and what it answers.
	defer func() { AddReportEntry(verb, fmt.Sprint(failure)) }()
	plugin := os.Getenv("PLUGIN")
	if plugin == "" {
		return reference(args)
	}
	// The goroutine is locked to a thread in the host's namespace, which the child inherits.
	cmd := exec.Command(plugin)
	cmd.Env = append(os.Environ(),
		"CNI_COMMAND="+verb,
		"CNI_CONTAINERID="+args.ContainerID,
		"CNI_NETNS="+args.Netns,
		"CNI_IFNAME="+args.IfName,
		"CNI_ARGS="+args.Args,
		"CNI_PATH="+os.Getenv("PATH"))
	cmd.Stdin = bytes.NewReader(args.StdinData)
	cmd.Stderr = GinkgoWriter
	answer, err := cmd.Output()
	if err == nil {
		// The suite replaces os.Stdout to read the result.
		_, err = os.Stdout.Write(answer)
		return err
	}
	refused := &types.Error{}
	if json.Unmarshal(answer, refused) != nil || refused.Msg == "" {
		return fmt.Errorf("%s of %s: %w, with %q on standard output", verb, plugin, err, answer)
	}
	return refused
}

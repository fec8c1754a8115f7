// ocicni-start does with CRI-O's CNI library what CRI-O does when it starts: it loads the
// configuration, which asks every plugin for its VERSION, waits for the network with STATUS, and
// collects with GC what is of no pod that it knows. ocicnitool, the library's own tool, has no
// command for the last two.
//
//	CONF_PATH=/etc/cni/net.d BIN_PATH=/opt/cni/bin ocicni-start [NAMESPACE/NAME/ID/NETNS ...]
package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/cri-o/ocicni/pkg/ocicni"
)

func main() {
	if err := start(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func start(args []string) error {
	pods := make([]*ocicni.PodNetwork, 0, len(args))
	for _, arg := range args {
		// A namespace's path has slashes of its own.
		part := strings.SplitN(arg, "/", 4)
		if len(part) != 4 {
			return fmt.Errorf("%q is not NAMESPACE/NAME/ID/NETNS", arg)
		}
		pods = append(pods, &ocicni.PodNetwork{
			Namespace: part[0], Name: part[1], ID: part[2], NetNS: part[3],
		})
	}
	plugin, err := ocicni.InitCNI("", os.Getenv("CONF_PATH"), strings.Split(os.Getenv("BIN_PATH"), ":")...)
	if err != nil {
		return err
	}
	ctx := context.Background()
	if err := plugin.StatusWithContext(ctx); err != nil {
		return err
	}
	return plugin.GC(ctx, pods)
}

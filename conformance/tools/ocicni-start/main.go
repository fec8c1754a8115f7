// ocicni-start makes CRI-O's CNI library do what CRI-O does when it starts: load the configuration,
// which sends
// VERSION to every plugin; wait for the network with STATUS; and remove with GC every attachment of
// a pod that
// CRI-O does not know. ocicnitool, the library's own tool, has no command for STATUS and GC.
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
		// The path of a network namespace contains slashes, too.
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

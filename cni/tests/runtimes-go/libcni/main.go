// A container runtime that has nothing but libcni: the reference implementation of the side that calls plugins.
//
//	runtime add|del|check CONFLIST CONTAINER NETNS IFNAME [KEY=VALUE…]
//	runtime gc CONFLIST [CONTAINER:IFNAME…]
//	runtime status CONFLIST
//
// Plugins are found in $CNI_PATH, results are cached in /var/lib/cni. The result, or the plugin's error, is JSON on standard
// output; the exit code is 1 after an error.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
)

func run() error {
	verb, arguments := os.Args[1], os.Args[2:]
	list, err := libcni.ConfListFromFile(arguments[0])
	if err != nil {
		return err
	}
	cni := libcni.NewCNIConfig(filepath.SplitList(os.Getenv("CNI_PATH")), nil)
	ctx := context.Background()
	switch verb {
	case "status":
		return cni.GetStatusNetworkList(ctx, list)
	case "gc":
		args := &libcni.GCArgs{ValidAttachments: []types.GCAttachment{}}
		for _, pair := range arguments[1:] {
			id, ifname, _ := strings.Cut(pair, ":")
			args.ValidAttachments = append(args.ValidAttachments, types.GCAttachment{ContainerID: id, IfName: ifname})
		}
		return cni.GCNetworkList(ctx, list, args)
	}
	rt := &libcni.RuntimeConf{ContainerID: arguments[1], NetNS: arguments[2], IfName: arguments[3]}
	rt.CapabilityArgs = map[string]interface{}{}
	for _, pair := range arguments[4:] {
		key, value, _ := strings.Cut(pair, "=")
		if capability, ok := strings.CutPrefix(key, "cap:"); ok {
			var decoded interface{}
			if err := json.Unmarshal([]byte(value), &decoded); err != nil {
				return err
			}
			rt.CapabilityArgs[capability] = decoded
			continue
		}
		rt.Args = append(rt.Args, [2]string{key, value})
	}
	switch verb {
	case "add":
		result, err := cni.AddNetworkList(ctx, list, rt)
		if err != nil {
			return err
		}
		return result.PrintTo(os.Stdout)
	case "check":
		return cni.CheckNetworkList(ctx, list, rt)
	case "del":
		return cni.DelNetworkList(ctx, list, rt)
	}
	return fmt.Errorf("unknown verb %s", verb)
}

func main() {
	err := run()
	if err == nil {
		return
	}
	var failure *types.Error
	if !errors.As(err, &failure) {
		failure = &types.Error{Code: 999, Msg: err.Error()}
	}
	json.NewEncoder(os.Stdout).Encode(map[string]interface{}{"code": failure.Code, "msg": failure.Msg, "details": failure.Details, "text": err.Error()})
	os.Exit(1)
}

// As much of a kubelet as starts and stops a pod's sandbox over CRI.
//
//	cri ready SOCKET
//	cri run SOCKET NAMESPACE NAME UID     (prints the sandbox's id and addresses)
//	cri stop SOCKET ID
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func run() error {
	verb, socket, arguments := os.Args[1], os.Args[2], os.Args[3:]
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	defer cancel()
	conn, err := grpc.DialContext(ctx, "unix://"+socket, grpc.WithBlock(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	client := cri.NewRuntimeServiceClient(conn)
	switch verb {
	case "ready":
		_, err := client.Version(ctx, &cri.VersionRequest{}, grpc.WaitForReady(true))
		return err
	case "run":
		config := &cri.PodSandboxConfig{
			Metadata: &cri.PodSandboxMetadata{Namespace: arguments[0], Name: arguments[1], Uid: arguments[2]},
			Linux:    &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{}},
		}
		made, err := client.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config})
		if err != nil {
			return err
		}
		status, err := client.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: made.PodSandboxId})
		if err != nil {
			return err
		}
		fmt.Println(made.PodSandboxId, status.Status.Network.Ip)
		return nil
	case "stop":
		if _, err := client.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: arguments[0]}); err != nil {
			return err
		}
		_, err := client.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: arguments[0]})
		return err
	}
	return fmt.Errorf("unknown verb %s", verb)
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

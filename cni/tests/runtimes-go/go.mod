module corax.invalid/runtimes

go 1.22.0

require (
	github.com/containernetworking/cni v1.3.0
	google.golang.org/grpc v1.64.0
	k8s.io/cri-api v0.30.0
)

require (
	github.com/gogo/protobuf v1.3.2 // indirect
	golang.org/x/net v0.28.0 // indirect
	golang.org/x/sys v0.23.0 // indirect
	golang.org/x/text v0.17.0 // indirect
	google.golang.org/genproto/googleapis/rpc v0.0.0-20240318140521-94a12d6c2237 // indirect
	google.golang.org/protobuf v1.33.0 // indirect
)

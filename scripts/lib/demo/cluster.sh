# shellcheck shell=bash
# What a Kubernetes cluster would bring: Gateway objects, and Services as kube-proxy programs them.

service_cidr4=10.96.0.0/16
service_cidr6=fd00:10:96::/112
secret=three-domains-of-the-demo

# One Service a pod: ClusterIP 10.96.0.N and fd00:10:96::N, port 80; NodePort 30000 + N.
declare -A service=([cloud-1]=11 [cloud-2]=12 [cloud-3]=13 [site-1]=21 [site-2]=22 [box-1]=31)

# write_gateways DIRECTORY: the Gateways that the cluster's controller would keep.
write_gateways() {
    local domain
    for domain in cloud site box; do
        gateway "$domain" >"$1/$domain.yaml"
    done
}

gateway() {
    local domain=$1 node endpoint
    endpoint=$(
        cat <<EOF
  - nodeName: $domain-1
    type: tunnel
    port: 4500
EOF
        if [[ $domain == cloud ]]; then
            echo "    publicIP: $public"
        else
            echo "    underNAT: true"
            echo "    natType: Symmetric NAT"
        fi
        echo "    config:"
        echo "      publicKey: $(on "$domain-1" "$corax" key)"
    )
    cat <<EOF
apiVersion: raven.openyurt.io/v1beta1
kind: Gateway
metadata:
  name: $domain
spec:
  tunnelConfig:
    Replicas: 1
  endpoints:
$endpoint
status:
  activeEndpoints:
$endpoint
  nodes:
EOF
    for node in "${nodes[@]}"; do
        [[ $(domain_of "$node") == "$domain" ]] || continue
        cat <<EOF
  - nodeName: $node
    privateIP: ${address[$node]}
    subnets:
    - ${pods4[$node]}.0/24
    - ${pods6[$node]}::/64
EOF
    done
}

# stand_in_kube_proxy NODE: Services by DNAT; what came to a NodePort from elsewhere than the node's pods gets the node
# as its source, as kube-proxy does it.
stand_in_kube_proxy() {
    local node=$1 other cluster4='' cluster6='' ports4=''
    for other in "${nodes[@]}"; do
        cluster4+="10.96.0.${service[$other]} . 80 : ${pods4[$other]}.10 . 8080, "
        cluster6+="fd00:10:96::${service[$other]} . 80 : ${pods6[$other]}::10 . 8080, "
        ports4+="300${service[$other]} : ${pods4[$other]}.10 . 8080, "
    done
    on "$node" nft -f - <<EOF
table ip kube-proxy {
    map cluster { type ipv4_addr . inet_service : ipv4_addr . inet_service; elements = { $cluster4 } }
    map ports { type inet_service : ipv4_addr . inet_service; elements = { $ports4 } }
    chain services {
        dnat ip addr . port to ip daddr . tcp dport map @cluster
        fib daddr type local tcp dport 30000-32767 ip saddr != ${pods4[$node]}.0/24 meta mark set meta mark | 0x4000
        fib daddr type local dnat ip addr . port to tcp dport map @ports
    }
    chain prerouting { type nat hook prerouting priority dstnat; jump services; }
    chain output { type nat hook output priority -100; jump services; }
    chain postrouting {
        type nat hook postrouting priority srcnat;
        meta mark & 0x4000 == 0x4000 meta mark set meta mark ^ 0x4000 masquerade fully-random
    }
}
table ip6 kube-proxy {
    map cluster { type ipv6_addr . inet_service : ipv6_addr . inet_service; elements = { $cluster6 } }
    chain services { dnat ip6 addr . port to ip6 daddr . tcp dport map @cluster; }
    chain prerouting { type nat hook prerouting priority dstnat; jump services; }
    chain output { type nat hook output priority -100; jump services; }
}
EOF
}

# Process of an agent, by node.
declare -A agent=()

# start_agents DIRECTORY: one agent a node, with the directory of Gateways; their logs go beside it.
start_agents() {
    local directory=$1 node options
    for node in "${nodes[@]}"; do
        options=()
        [[ $(domain_of "$node") != site ]] || options+=(--mesh)
        VPN_CONNECTION_PSK=$secret on "$node" "$corax" agent --node-name "$node" --source "$directory" \
            --service-cidr "$service_cidr4" --service-cidr "$service_cidr6" "${options[@]}" \
            >"$directory/../$node.log" 2>&1 &
        agent[$node]=$!
    done
}

# await_agents SECONDS: until every agent says that the view is applied.
await_agents() {
    local node end=$((SECONDS + $1))
    for node in "${nodes[@]}"; do
        until ready "$node"; do
            kill -0 "${agent[$node]}" 2>/dev/null || { echo "the agent of $node ended"; return 1; }
            ((SECONDS < end)) || { echo "the agent of $node is not ready after $1 s"; return 1; }
            sleep 0.1
        done
    done
}

ready() {
    # shellcheck disable=SC2016
    on "$1" timeout $((2 * patience)) bash -c '
        exec 3<>/dev/tcp/127.0.0.1/10265 && printf "GET /readyz HTTP/1.0\r\n\r\n" >&3 && read -r _ code _ <&3 &&
            [[ $code == 200 ]]' 2>/dev/null
}

# await_tunnels SECONDS: until the domains behind NATs, which begin, have reached the cloud.
await_tunnels() {
    local domain end=$((SECONDS + $1))
    for domain in site box; do
        until on "pod-$domain-1" ping -n -q -c 1 -W 1 "${pods4[cloud-1]}.10" >/dev/null; do
            ((SECONDS < end)) || { echo "no tunnel from $domain to cloud after $1 s"; return 1; }
        done
    done
}

# shellcheck shell=bash
# Three domains and the internet between them:
#
#                         internet
#            198.51.100.1 │   │ 203.0.113.1   └──────── 192.0.2.1
#                         │   └───────────┐           │
#    cloud  1:1 to cloud-1│          site │ NAT   box │ NAT
#       172.16.0.0/24 ────┤  192.168.1.0/24    192.168.1.0/24
#   cloud-1 cloud-2 cloud-3  site-1 site-2          box-1
#    .11     .12     .13      .11    .12             .11      each with a pod behind a bridge
#
# site and box have the same addresses, and reach each other by relay only: both NATs are symmetric to Corax.

nodes=(cloud-1 cloud-2 cloud-3 site-1 site-2 box-1)

declare -A address=(
    [cloud-1]=172.16.0.11 [cloud-2]=172.16.0.12 [cloud-3]=172.16.0.13
    [site-1]=192.168.1.11 [site-2]=192.168.1.12 [box-1]=192.168.1.11)
declare -A pods4=(
    [cloud-1]=10.10.1 [cloud-2]=10.10.2 [cloud-3]=10.10.3 [site-1]=10.20.1 [site-2]=10.20.2 [box-1]=10.30.1)
declare -A pods6=(
    [cloud-1]=fd00:10:10:1 [cloud-2]=fd00:10:10:2 [cloud-3]=fd00:10:10:3
    [site-1]=fd00:10:20:1 [site-2]=fd00:10:20:2 [box-1]=fd00:10:30:1)

public=198.51.100.2

domain_of() { printf '%s' "${1%-*}"; }

build_topology() {
    local node domain
    for domain in cloud site box; do
        space "$domain-router"
    done
    for node in "${nodes[@]}"; do
        machine "$node"
        space "pod-$node"
    done
    build_internet
    for node in "${nodes[@]}"; do
        build_node "$node"
    done
}

# This script's own namespace is the internet: it knows the three public networks and nothing else.
build_internet() {
    echo 1 >/proc/sys/net/ipv4/ip_forward
    ip link set lo up
    router cloud 198.51.100.1/30 198.51.100.2/30 172.16.0.254/24
    router site 203.0.113.1/30 203.0.113.2/30 192.168.1.254/24
    router box 192.0.2.1/30 192.0.2.2/30 192.168.1.254/24
    on cloud-router nft -f - <<EOF
table ip nat {
    chain prerouting {
        type nat hook prerouting priority dstnat
        ip daddr $public dnat to ${address[cloud-1]}
    }
    chain postrouting {
        type nat hook postrouting priority srcnat
        oifname "wan" ip saddr ${address[cloud-1]} snat to $public
        oifname "wan" masquerade
    }
}
EOF
    local domain
    for domain in site box; do
        on "$domain-router" nft -f - <<'EOF'
table ip nat {
    chain postrouting {
        type nat hook postrouting priority srcnat
        oifname "wan" masquerade fully-random
    }
}
EOF
    done
}

# router DOMAIN ADDRESS-OF-THE-INTERNET ADDRESS-TO-THE-INTERNET ADDRESS-IN-THE-DOMAIN
router() {
    local domain=$1 outside=$2 wan=$3 lan=$4
    ip -batch - <<EOF
link add $domain type veth peer name wan netns /proc/${holder[$domain-router]}/ns/net
address add $outside dev $domain
link set $domain up
EOF
    lines "$domain-router" <<EOF
link add lan type bridge
address add $lan dev lan
address add fe80::1/64 dev lan
address add $wan dev wan
link set lan up
link set wan up
route add default via ${outside%/*}
EOF
    settings "$domain-router" ipv4/ip_forward=1
}

build_node() {
    local node=$1 domain
    domain=$(domain_of "$node")
    lines "$domain-router" <<EOF
link add $node type veth peer name eth0 netns @$node
link set $node master lan up
EOF
    local router=172.16.0.254
    [[ $domain == cloud ]] || router=192.168.1.254
    lines "$node" <<EOF
address add ${address[$node]}/24 dev eth0
link set eth0 address $(mac "$node") up
route add default via $router
route add default via fe80::1 dev eth0
link add cni0 type bridge
address add ${pods4[$node]}.1/24 dev cni0
address add ${pods6[$node]}::1/64 dev cni0 nodad
link set cni0 up
link add pod type veth peer name eth0 netns @pod-$node
link set pod master cni0 up
EOF
    lines "pod-$node" <<EOF
address add ${pods4[$node]}.10/24 dev eth0
address add ${pods6[$node]}::10/64 dev eth0 nodad
link set eth0 up
route add default via ${pods4[$node]}.1
route add default via ${pods6[$node]}::1
EOF
    settings "$node" ipv4/ip_forward=1 ipv6/conf/all/forwarding=1
    stand_in_cni "$node"
}

mac() { printf '02:00:00:00:00:%s' "${address[$1]##*.}"; }
link_local() { printf 'fe80::ff:fe00:%s' "${address[$1]##*.}"; }

# What a CNI does: routes between the nodes of a domain, where Corax is not asked to (cloud), and the source of whatever
# leaves the domain replaced.
stand_in_cni() {
    local node=$1 domain inside4=${pods4[$1]}.0/24 inside6=${pods6[$1]}::/64
    domain=$(domain_of "$node")
    if [[ $domain == cloud ]]; then
        inside4=10.10.0.0/16 inside6=fd00:10:10::/48
        local other
        for other in cloud-1 cloud-2 cloud-3; do
            [[ $other != "$node" ]] || continue
            lines "$node" <<EOF
route add ${pods4[$other]}.0/24 via ${address[$other]}
route add ${pods6[$other]}::/64 via $(link_local "$other") dev eth0 src ${pods6[$node]}::1
EOF
        done
    fi
    on "$node" nft -f - <<EOF
table ip cni {
    chain postrouting {
        type nat hook postrouting priority srcnat
        ip saddr ${pods4[$node]}.0/24 ip daddr != { $inside4, 224.0.0.0/4 } masquerade
    }
}
table ip6 cni {
    chain postrouting {
        type nat hook postrouting priority srcnat
        ip6 saddr ${pods6[$node]}::/64 ip6 daddr != { $inside6, ff00::/8 } masquerade
    }
}
EOF
}

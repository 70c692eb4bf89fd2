# shellcheck shell=bash
# Who reaches whom, and as whom: every pod and every node to every other node's pod.

kinds=(v4 v6 tcp service port node)
# Checks that go on at the same time: as many as may hang and hold up no other, few where the machine is emulated.
at_once=${DEMO_AT_ONCE:-60}
large=400000  # bytes, both ways: stalls where a packet is too big for a path and nobody says so
small=3000    # bytes: more than one packet

# Result of a check by LABEL; ok or what failed.
declare -A result=()

start_servers() {
    local node port=8080
    for node in "${nodes[@]}"; do
        on "pod-$node" socat -t $((30 * patience)) "TCP4-LISTEN:$port,fork,reuseaddr" "EXEC:$here/probe --serve" 2>/dev/null &
        on "pod-$node" socat -t $((30 * patience)) "TCP6-LISTEN:$port,fork,reuseaddr,ipv6only=1" "EXEC:$here/probe --serve" 2>/dev/null &
    done
    for node in "${nodes[@]}"; do
        until [[ $(on "pod-$node" ss -Hltn "sport = $port" | wc -l) == 2 ]]; do sleep 0.02; done
    done
}

# What a server in the pod of the second node sees of a process on the first: the node's pod-side address where Corax
# carries it, else what the node's routes say.
node_source4() {
    if carried "$1" "$2"; then echo "${pods4[$1]}.0"; else echo "${address[$1]}"; fi
}
node_source6() {
    if carried "$1" "$2"; then echo "${pods6[$1]}:ffff:ffff:ffff:ffff"; else echo "${pods6[$1]}::1"; fi
}
carried() { [[ $(domain_of "$1") != "$(domain_of "$2")" || $(domain_of "$1") == site ]]; }

checks_of_pod() {
    local from=$1 to s4=${pods4[$1]}.10 s6=${pods6[$1]}::10
    for to in "${nodes[@]}"; do
        [[ $to != "$from" ]] || continue
        cat <<EOF
v4,ping,pod,$from,$to ${pods4[$to]}.10 ping 1200 -
v6,ping,pod,$from,$to ${pods6[$to]}::10 ping 1200 -
tcp,v4,pod,$from,$to ${pods4[$to]}.10 8080 $large $s4
tcp,v6,pod,$from,$to ${pods6[$to]}::10 8080 $large $s6
service,v4,pod,$from,$to 10.96.0.${service[$to]} 80 $small $s4
service,v6,pod,$from,$to fd00:10:96::${service[$to]} 80 $small $s6
port,v4,pod,$from,$to ${address[$from]} 300${service[$to]} $small $s4
EOF
    done
}

# A node whose underlay is IPv4 has IPv6 addresses on its pods' side only; the kernel takes one of them for a ClusterIP.
checks_of_node() {
    local from=$1 to s4 s6 side6=${pods6[$1]}:ffff:ffff:ffff:ffff
    for to in "${nodes[@]}"; do
        [[ $to != "$from" ]] || continue
        s4=$(node_source4 "$from" "$to") s6=$(node_source6 "$from" "$to")
        cat <<EOF
node,v4,node,$from,$to ${pods4[$to]}.10 8080 $small $s4
node,v6,node,$from,$to ${pods6[$to]}::10 8080 $small $s6
service,v4,node,$from,$to 10.96.0.${service[$to]} 80 $small $s4
service,v6,node,$from,$to fd00:10:96::${service[$to]} 80 $small ${pods6[$from]}::1|$side6
port,v4,node,$from,$to ${address[$from]} 300${service[$to]} $small $s4
EOF
    done
}

# A client in the domain's own network that is no node.
checks_from_outside() {
    local domain=$1 node to
    for node in "${nodes[@]}"; do
        [[ $(domain_of "$node") == "$domain" ]] || continue
        for to in "${nodes[@]}"; do
            [[ $to != "$node" ]] || continue
            echo "port,v4,outside,$node,$to ${address[$node]} 300${service[$to]} $small $(node_source4 "$node" "$to")"
        done
    done
}

run_checks() {
    local node domain label outcome waiting=()
    mkfifo /run/leaves
    exec 8<>/run/leaves
    printf '%*s' "$at_once" '' >&8
    {
        for node in "${nodes[@]}"; do
            { checks_of_pod "$node" | on "pod-$node" "$here/probe"; } &
            waiting+=($!)
            { checks_of_node "$node" | on "$node" "$here/probe"; } &
            waiting+=($!)
        done
        for domain in cloud site box; do
            { checks_from_outside "$domain" | on "$domain-router" "$here/probe"; } &
            waiting+=($!)
        done
        wait "${waiting[@]}"
    } >/run/results
    while read -r label outcome; do
        result[$label]=${outcome% }
    done </run/results
    exec 8>&-
}

# failures: the checks that failed, a line each.
failures() {
    local label kind family who from to
    for label in "${!result[@]}"; do
        [[ ${result[$label]} != ok ]] || continue
        IFS=, read -r kind family who from to <<<"$label"
        case $who in
            pod) who="pod of $from" ;;
            node) who="node $from" ;;
            outside) who="outside, by node $from" ;;
        esac
        printf '%s → pod of %s, %s: %s\n' "$who" "$to" "$(spelled "$kind" "$family")" "${result[$label]}"
    done | sort
}

spelled() {
    case $1 in
        v4 | v6) echo "ping over IP$1" ;;
        tcp) echo "$large bytes of TCP over IP$2" ;;
        service) echo "ClusterIP over IP$2" ;;
        port) echo "NodePort" ;;
        node) echo "TCP over IP$2" ;;
    esac
}

print_matrix() {
    local from to kind label cell bad yes=✓ no=✗
    [[ ${LC_ALL:-${LC_CTYPE:-${LANG:-}}} == *[uU][tT][fF]* ]] || yes=+ no=x
    printf '\n%s%-10s' "$bold" 'from \ to'
    for to in "${nodes[@]}"; do printf '%-9s' "$to"; done
    printf '%s\n' "$plain"
    for from in "${nodes[@]}"; do
        printf '%s%-10s%s' "$bold" "$from" "$plain"
        for to in "${nodes[@]}"; do
            if [[ $from == "$to" ]]; then
                printf '%s······%s   ' "$dim" "$plain"
                continue
            fi
            cell=''
            for kind in "${kinds[@]}"; do
                bad=''
                for label in "${!result[@]}"; do
                    [[ $label == "$kind",*,"$from","$to" && ${result[$label]} != ok ]] && bad=1
                done
                if [[ $bad ]]; then cell+=$red$no; else cell+=$green$yes; fi
            done
            printf '%s%s   ' "$cell" "$plain"
        done
        printf '\n'
    done
    cat <<EOF

Each cell, from left to right: ping over IPv4, ping over IPv6, $((large / 1000)) kB of TCP both ways over each, ClusterIP,
NodePort, and the node itself to the pod. $yes: every connection was there, and the server saw the right source address.
EOF
}

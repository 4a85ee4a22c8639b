#!/bin/bash
# The whole chain on real input, each step with its time: a registry serves a Debian image over HTTP; it is pulled, converted and booted;
# programs run in it, its web server and its database answer, and it is stopped. Needs KVM: `make demo` runs it in the testbed.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PWD/build/bin:$PATH
export SUPERMACHINE_ASSETS=$PWD/build/share/supermachine
work=$(mktemp -d)
export SUPERMACHINE_HOME=$work/home XDG_RUNTIME_DIR=$work

registry=
cleanup() {
	supermachine stop --force demo >/dev/null 2>&1 || true
	[[ -z $registry ]] || { kill "$registry" && wait "$registry" || true; }
	rm -rf "$work"
}
trap cleanup EXIT

# step TITLE COMMAND… runs a command, shows its output indented, and says how long it took.
step() {
	local title=$1 start=$EPOCHREALTIME status=0
	shift
	printf '\n▸ %s\n' "$title"
	"$@" 2>&1 | sed -u 's/^/    /' || status=$?
	awk -v a="$start" -v b="$EPOCHREALTIME" 'BEGIN { printf "  %.2f s\n", b - a }'
	((status == 0)) || { echo "demo: $title: exit status $status" >&2; exit 1; }
}

start_registry() {
	mkfifo "$work/ready"
	images/serve --port 0 >"$work/ready" &
	registry=$!
	read -r line <"$work/ready"
	printf '\n▸ %s\n' "$line"
	address=${line##* }
}

http_get() {
	local end=$((SECONDS + 60)) reply
	until reply=$({ exec 3<>/dev/tcp/127.0.0.1/8080 && printf 'GET / HTTP/1.0\r\n\r\n' >&3 && cat <&3; } 2>/dev/null) && [[ $reply == HTTP/*" 200 "* ]]; do
		((SECONDS < end)) || { echo "no answer: $reply"; return 1; }
		sleep 0.1
	done
	grep -m 1 HTTP/ <<<"$reply"
	grep -m 1 -i '<title>' <<<"$reply"
}

redis() {
	supermachine exec demo redis-server --daemonize yes --save '' >/dev/null
	supermachine exec demo sh -c 'until redis-cli ping 2>/dev/null; do sleep 0.1; done'
}

supermachine doctor
start_registry
image=$address/debian
step "pull $image: HTTP, digests, conversion to EROFS" supermachine pull "$image"
step "boot it, its command is nginx" supermachine run -d --name demo -p 8080:80 "$image"
step "list VMs" supermachine ps
step "python3 -c … inside" supermachine exec demo python3 -c 'import os, platform; print("hello from", platform.node(), platform.release(), "pid", os.getpid())'
step "HTTP GET to nginx inside, through the published port" http_get
step "redis-cli ping inside" redis
step "stop" supermachine stop demo
step "nothing is left" supermachine ps

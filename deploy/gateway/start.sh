#!/bin/sh
# Starts nginx with the container's own resolver: its address differs between Docker and podman.
set -eu
address=$(awk '$1 == "nameserver" && $2 ~ /^[0-9.]+$/ {print $2; exit}' /etc/resolv.conf)
echo "resolver ${address:-127.0.0.11} valid=5s;" > /tmp/resolver.conf
exec nginx -c /etc/latentwire/nginx.conf -g "daemon off;"

#!/bin/sh
# Queues a file of items each night and works on all jobs until they have ended, in the cheapest lane
# that is done by seven. A line of crontab, for half past one:
#   30 1 * * * /srv/shop/nightly.sh /srv/shop/tonight.jsonl
# Work that is left when the machine stops goes on the next night: nothing is paid for twice.
set -eu
items=$1
gateway=${GEMINI_GATEWAY:-gemini-gateway}
config=${GEMINI_GATEWAY_CONFIG:-/etc/gemini-gateway/gateway.toml}

# What it costs goes into cron's mail; above the cap nothing is started.
"$gateway" --config "$config" jobs plan "$items" --lanes deferred,flex,batch
"$gateway" --config "$config" jobs submit "$items" --lanes deferred,flex,batch \
    --max-usd "${MAX_USD:-20}" --name "nightly $(date +%F)"
"$gateway" --config "$config" jobs run
"$gateway" --config "$config" jobs fetch --out "$(dirname "$items")/images"

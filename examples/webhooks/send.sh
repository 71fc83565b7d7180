#!/bin/sh
# Send one signed webhook to relay, as GitHub does: ./send.sh issues '{"action": "opened"}'
# Needs curl and openssl. WEBHOOK_SECRET is the secret of the webhook.
set -eu
event=$1
body=$2
secret=${WEBHOOK_SECRET:-a-secret-for-the-example}

signature=$(printf '%s' "$body" | openssl dgst -sha256 -hmac "$secret" -r | cut -d ' ' -f 1)
printf '%s' "$body" | curl --fail-with-body --silent --show-error --data-binary @- \
    -H 'Content-Type: application/json' \
    -H "X-GitHub-Event: $event" \
    -H "X-GitHub-Delivery: $(date +%s%N)" \
    -H "X-Hub-Signature-256: sha256=$signature" \
    "${RELAY_URL:-http://127.0.0.1:8080}/publish/hooks.github"

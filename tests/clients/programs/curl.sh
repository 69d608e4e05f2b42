#!/usr/bin/env bash
# The pipeline of Google's documentation. `--dump-header` and `tee` only look on.
set -uo pipefail

MODEL=${MODEL:-gemini-3-pro-image}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
size=${SIZE:+", \"imageConfig\": {\"imageSize\": \"$SIZE\"}"}

curl -s --show-error -X POST \
    "$BASE_URL/v1beta/models/$MODEL:generateContent" \
    -H "x-goog-api-key: $API_KEY" \
    -H "x-sim-call: $SIM_CALL" \
    -H 'Content-Type: application/json' \
    --dump-header "$folder/head" \
    -d '{
      "contents": [{"parts": [{"text": "A cat in a teacup"}]}],
      "generationConfig": {"responseModalities": ["TEXT", "IMAGE"]'"$size"'}
    }' 2> "$folder/error" \
    | tee "$folder/answer" \
    | grep -o '"data": "[^"]*"' \
    | cut -d'"' -f4 \
    | base64 --decode > "$folder/image.png" 2>> "$folder/error"
stages=("${PIPESTATUS[@]}")

status=$(sed -n 's|^HTTP/[0-9.]* \([0-9]*\).*|\1|p' "$folder/head" | tail -1)
finish=$(grep -o '"finishReason": *"[A-Z_]*"' "$folder/answer" | tail -1 | cut -d'"' -f4)
bytes=$(stat -c %s "$folder/image.png")
error=$(tr -d '"\\\n\r\t' < "$folder/error" | cut -c1-300)
quoted() { if [[ -n $1 ]]; then printf '"%s"' "$1"; else printf null; fi; }

images=[] chosen=
if ((bytes > 0)); then
    chosen=$(sha256sum "$folder/image.png" | cut -d' ' -f1)
    images="[{\"sha256\": \"$chosen\", \"bytes\": $bytes, \"mime\": null}]"
fi
# A user sees an image in the file, or not; curl itself is content with any answer that arrived whole.
ok=true kind=
if ((stages[0] != 0)); then ok=false kind="curl ${stages[0]}"; elif [[ ${status:-0} != 200 ]]; then ok=false kind="HTTP $status"; fi
printf '{"ok": %s, "error_type": %s, "error": %s, "status": %s, "images": %s, "chosen_sha256": %s, "finish_reason": %s, "text": null}\n' \
    "$ok" "$(quoted "$kind")" "$(quoted "$error")" "${status:-null}" "$images" "$(quoted "$chosen")" "$(quoted "$finish")"

#!/bin/sh
# Classifies a picture through a published adapter, with curl and coreutils alone.
#
#     CRAFT_URL=http://127.0.0.1:8000 CRAFT_API_KEY=craft_... predict.sh ADAPTER PICTURE
#
# Prints the answer, or the problem document and exits with 22. In an adapter's name, write / and @
# as they are.
set -eu
url=${CRAFT_URL:-http://127.0.0.1:8000}
: "${CRAFT_API_KEY:?holds no key}"

# The key travels through a file descriptor, and the picture through a pipe: neither is in the
# process list. Tries again (--retry) have the same Idempotency-Key, so that none is charged twice.
printf '{"images": ["%s"], "top_k": 3}' "$(base64 <"$2" | tr -d '\n')" |
  curl --silent --show-error --fail-with-body --retry 3 --max-time 60 \
    --header @/dev/fd/3 \
    --header 'Content-Type: application/json' \
    --header "Idempotency-Key: $(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')" \
    --data-binary @- \
    "$url/v1/adapters/$1/predictions" 3<<END
Authorization: Bearer $CRAFT_API_KEY
END

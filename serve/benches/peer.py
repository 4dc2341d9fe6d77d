"""The peer that `load.py` measures beside `fbgemm serve`: a service as one writes it in Python today.

FastAPI on uvicorn (uvloop, httptools), Hugging Face's tokenizers, onnxruntime on an int8 model that
`encoder/benches/peers.py quantize` made. Requests that wait are gathered into batches of texts sorted by length, with
no more than so many tokens, padding counted. `POST /embed {"inputs": TEXT}`; no limits, tokens or metrics.

    python3 peer.py MODEL_FOLDER int8.onnx PORT
"""
import asyncio
import concurrent.futures
import contextlib
import os
import sys

import fastapi
import numpy as np
import onnxruntime
import orjson
import tokenizers
import uvicorn

FOLDER, ONNX, PORT = sys.argv[1], sys.argv[2], int(sys.argv[3])
THREADS = int(os.environ.get("THREADS", len(os.sched_getaffinity(0))))
# A batch per session and one thread a session, or all threads on one batch: `SESSIONS=1` is the latter.
SESSIONS = int(os.environ.get("SESSIONS", THREADS))
BATCH_TOKENS = int(os.environ.get("BATCH_TOKENS", 512))
BATCH_TEXTS = int(os.environ.get("BATCH_TEXTS", 32))

tokenizer = tokenizers.Tokenizer.from_file(f"{FOLDER}/tokenizer.json")
tokenizer.enable_truncation(256)
tokenizer.no_padding()


def session():
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = max(1, THREADS // SESSIONS)
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(ONNX, options, providers=["CPUExecutionProvider"])


def embed(run, rows):
    ids = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
    mask = np.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, :len(row)] = row
        mask[i, :len(row)] = 1
    states = run.run(None, {"input_ids": ids, "attention_mask": mask})[0]
    weights = mask[:, :, None].astype(np.float32)
    mean = (states * weights).sum(1) / weights.sum(1)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)


waiting = []
arrived = asyncio.Event()


def take():
    """The oldest, and with it those of the nearest lengths that the budget allows."""
    oldest = waiting[0]
    near = sorted(waiting[1:], key=lambda request: abs(len(request[0]) - len(oldest[0])))
    batch, longest = [oldest], len(oldest[0])
    for request in near[:BATCH_TEXTS - 1]:
        longest = max(longest, len(request[0]))
        if longest * (len(batch) + 1) > BATCH_TOKENS:
            break
        batch.append(request)
    chosen = set(map(id, batch))
    waiting[:] = [request for request in waiting if id(request) not in chosen]
    return batch


async def work(run, pool):
    while True:
        while not waiting:
            arrived.clear()
            await arrived.wait()
        batch = take()
        loop = asyncio.get_running_loop()
        vectors = await loop.run_in_executor(pool, embed, run, [ids for ids, _ in batch])
        for (_, answer), vector in zip(batch, vectors):
            if not answer.done():
                answer.set_result(vector)


@contextlib.asynccontextmanager
async def lifespan(app):
    pool = concurrent.futures.ThreadPoolExecutor(SESSIONS)
    workers = [asyncio.create_task(work(session(), pool)) for _ in range(SESSIONS)]
    yield
    for worker in workers:
        worker.cancel()


app = fastapi.FastAPI(lifespan=lifespan)


@app.get("/health")
async def health():
    return {}


@app.post("/embed")
async def embed_request(request: fastapi.Request):
    text = orjson.loads(await request.body())["inputs"]
    answer = asyncio.get_running_loop().create_future()
    waiting.append((tokenizer.encode(text).ids, answer))
    arrived.set()
    vector = await answer
    body = orjson.dumps([vector], option=orjson.OPT_SERIALIZE_NUMPY)
    return fastapi.Response(body, media_type="application/json")


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=PORT, log_level="warning", access_log=False)

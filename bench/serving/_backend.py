"""A server of the Open Inference Protocol that misbehaves on command; run as `python _backend.py PORT`.

It reads commands from its standard input, one word a line: answer, error, truncate, slow. It adds up each row.
"""

import asyncio
import json
import sys
import threading

import numpy as np

MODE = ["answer"]
SLOW_SECONDS = 1.0


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
            body = await reader.readexactly(int(headers[b"content-length"]))
            length = int(headers[b"inference-header-content-length"])
            shape = json.loads(body[:length])["inputs"][0]["shape"]
            values = np.frombuffer(body[length:], "<f8").reshape(shape).sum(axis=1)
            output = {"name": "sum", "datatype": "FP64", "shape": [len(values)]}
            output["parameters"] = {"binary_data_size": 8 * len(values)}
            told = json.dumps({"model_name": "sum", "model_version": "1", "outputs": [output]}).encode()
            reply = b"HTTP/1.1 200 OK\r\ninference-header-content-length: %d\r\ncontent-length: %d\r\n\r\n%b%b" % (
                len(told),
                len(told) + 8 * len(values),
                told,
                values.tobytes(),
            )
            match MODE[0]:
                case "error":
                    writer.write(b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n")
                case "truncate":
                    writer.write(reply[:-4])
                    await writer.drain()
                    return
                case "slow":
                    await asyncio.sleep(SLOW_SECONDS)
                    writer.write(reply)
                case _:
                    writer.write(reply)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


def obey() -> None:
    for line in sys.stdin:
        MODE[0] = line.strip()


async def main() -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]))
    print("ready", flush=True)
    threading.Thread(target=obey, daemon=True).start()
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())

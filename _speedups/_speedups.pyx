# cython: auto_pickle=False, autotestdict=False
#
# The compiled twins of relay._native: the codec of the stream's bytes, and the engine of open streams.
#
# One extension of several parts, each of which is a file of its own; `relay.speedups` alone imports it.

include "encode.pxi"
include "decode.pxi"
include "json.pxi"
include "sockets.pxi"
include "checksum.pxi"
include "chunk.pxi"
include "engine.pxi"

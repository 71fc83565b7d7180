# cython: auto_pickle=False, autotestdict=False
#
# The compiled counterpart of relay._native: the codec, the conversion of JSON text, accepted
# connections, and the engine of open streams.
#
# One extension, whose parts are separate files. Only `relay.speedups` imports it.

include "encode.pxi"
include "decode.pxi"
include "json.pxi"
include "sockets.pxi"
include "checksum.pxi"
include "chunk.pxi"
include "engine.pxi"
include "arrivals.pxi"

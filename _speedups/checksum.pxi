# CRC-32 of content that is sent in pieces (RFC 1952 section 8, ISO 3309).
#
# Theory of operation. A CRC is a polynomial over GF(2) modulo P. Appending a piece of n bytes to content multiplies the
# CRC of the content by x^(8n) modulo P and adds the CRC of the piece. The CRC of the piece and the factor x^(8n) are
# computed once for all streams. Each stream then costs one multiplication, and its bytes are not read again.

from libc.stdint cimport uint32_t, uint64_t

cdef uint32_t CRC_POLYNOMIAL = 0xEDB88320  # reflected: bit 31 is the coefficient of x^0
cdef uint32_t CRC_ONE = 0x80000000


cdef uint32_t _crc_multiply(uint32_t left, uint32_t right) noexcept nogil:
    # Returns the product of two polynomials modulo P.
    cdef uint32_t product = 0, bit = CRC_ONE
    while left:
        if left & bit:
            product ^= right
            left ^= bit
        bit >>= 1
        right = (right >> 1) ^ (CRC_POLYNOMIAL if right & 1 else 0)
    return product


cdef uint32_t _crc_factor(uint64_t size) noexcept nogil:
    # Returns x^(8 size) modulo P, by repeated squaring.
    cdef uint32_t factor = CRC_ONE, square = CRC_ONE >> 8
    while size:
        if size & 1:
            factor = _crc_multiply(square, factor)
        square = _crc_multiply(square, square)
        size >>= 1
    return factor

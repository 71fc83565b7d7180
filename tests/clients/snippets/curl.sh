#!/bin/sh
exec curl --no-buffer --silent --show-error --fail "$@"

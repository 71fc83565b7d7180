// Caddy with Mercure's hub in it, as xcaddy would make it, without the modules that no hub needs.
package main

import (
	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	_ "github.com/caddyserver/caddy/v2/modules/caddyhttp"
	_ "github.com/dunglas/mercure/caddy"
)

func main() {
	caddycmd.Main()
}

// Caddy with Mercure's hub, as built by xcaddy, without the modules that a hub does not need.
package main

import (
	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	_ "github.com/caddyserver/caddy/v2/modules/caddyhttp"
	_ "github.com/dunglas/mercure/caddy"
)

func main() {
	caddycmd.Main()
}

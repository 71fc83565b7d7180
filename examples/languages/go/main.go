// Print the events of a stream: go run . URL. It reconnects and resumes.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net/http"
	"os"
	"time"

	"github.com/tmaxmax/go-sse"
)

var (
	errEnded = errors.New("all topics have ended")
	errBusy  = errors.New("the server is not available")
)

// check accepts a stream. go-sse does not try again after an error of this function.
func check(response *http.Response) error {
	switch status := response.StatusCode; {
	case status == http.StatusNoContent:
		return errEnded
	case status == http.StatusTooManyRequests || status >= 500:
		return errBusy
	default:
		return sse.DefaultValidator(response)
	}
}

func main() {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, os.Args[1], http.NoBody)
	if err != nil {
		log.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+os.Getenv("TOKEN"))
	client := sse.Client{ResponseValidator: check, Backoff: sse.Backoff{MaxInterval: 30 * time.Second}}
	connection := client.NewConnection(request)
	connection.Buffer(nil, 8<<20) // relay accepts events of up to 1 MiB by default.
	connection.SubscribeToAll(func(event sse.Event) {
		switch {
		case event.Type == "relay.gap":
			fmt.Println("missed events:", event.Data)
		case event.Type == "relay.end":
			stop()
		case event.Type == "" && event.Data == "":
			// go-sse reports the priming of a stream as an event.
		default:
			fmt.Println(event.Type, event.LastEventID, event.Data)
		}
	})
	for {
		err = connection.Connect()
		if ctx.Err() != nil || errors.Is(err, errEnded) {
			return
		}
		if err != nil && !errors.Is(err, errBusy) {
			log.Fatal(err)
		}
		time.Sleep(time.Second)
	}
}

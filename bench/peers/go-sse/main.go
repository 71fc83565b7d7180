// A server of go-sse that is fed by lines of JSON: go-sse PORT SOCKET
package main

import (
	"bufio"
	"encoding/json"
	"log"
	"net"
	"net/http"
	"os"

	"github.com/tmaxmax/go-sse"
)

const historyEvents = 10_000

type line struct {
	Topic string          `json:"topic"`
	Data  json.RawMessage `json:"data"`
}

func main() {
	if len(os.Args) != 3 {
		log.Fatal("usage: go-sse PORT SOCKET")
	}
	// One more, for an event that no client receives: it has id 0, so a client can request all events after id 0.
	replayer, err := sse.NewFiniteReplayer(historyEvents+1, true)
	if err != nil {
		log.Fatal(err)
	}
	server := &sse.Server{
		Provider: &sse.Joe{Replayer: replayer},
		OnSession: func(w http.ResponseWriter, r *http.Request) ([]string, bool) {
			// The library sends the head with the first event. Send it now, so that the stream is open before.
			w.Header().Set("Content-Type", "text/event-stream")
			return r.URL.Query()["topic"], http.NewResponseController(w).Flush() == nil
		},
	}
	first := &sse.Message{}
	first.AppendData("first")
	if err := server.Publish(first, "nobody"); err != nil {
		log.Fatal(err)
	}
	feed, err := net.Listen("unix", os.Args[2])
	if err != nil {
		log.Fatal(err)
	}
	go accept(feed, server)
	http.Handle("/events", server)
	http.HandleFunc("/replay", func(w http.ResponseWriter, r *http.Request) {
		r.Header.Set("Last-Event-Id", "0")
		server.ServeHTTP(w, r)
	})
	log.Fatal(http.ListenAndServe("127.0.0.1:"+os.Args[1], nil))
}

func accept(feed net.Listener, server *sse.Server) {
	for {
		feeder, err := feed.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go publish(feeder, server)
	}
}

func publish(feeder net.Conn, server *sse.Server) {
	defer feeder.Close()
	lines := bufio.NewScanner(feeder)
	for lines.Scan() {
		event := line{Topic: "default"}
		if err := json.Unmarshal(lines.Bytes(), &event); err != nil {
			log.Fatal(err)
		}
		message := &sse.Message{}
		message.AppendData(string(event.Data))
		if err := server.Publish(message, event.Topic); err != nil {
			log.Fatal(err)
		}
	}
}

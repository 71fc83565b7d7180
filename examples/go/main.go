// Print the events of a topic: go run . news. It reconnects and resumes, and needs only the standard library.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"
)

var errEnded = errors.New("the topic has ended")

// A subscriber keeps the state that it needs to resume.
type subscriber struct {
	url    string
	lastID string
	retry  time.Duration
}

// follow reads one response until it ends.
func (s *subscriber) follow() error {
	request, err := http.NewRequest(http.MethodGet, s.url, nil)
	if err != nil {
		return err
	}
	request.Header.Set("Accept", "text/event-stream")
	if s.lastID != "" {
		request.Header.Set("Last-Event-ID", s.lastID)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode == http.StatusNoContent {
		return errEnded
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("the server answered %s", response.Status)
	}
	return s.read(response.Body)
}

// read parses an event stream (WHATWG HTML 9.2.6) and prints its events.
func (s *subscriber) read(body io.Reader) error {
	lines := bufio.NewScanner(body)
	lines.Buffer(nil, 8<<20) // relay accepts events of up to 1 MiB by default.
	var data []string
	kind := ""
	for lines.Scan() {
		if lines.Text() == "" {
			if data != nil {
				fmt.Println(kind, s.lastID, strings.Join(data, "\n"))
			}
			if kind == "relay.end" {
				return errEnded
			}
			data, kind = nil, ""
			continue
		}
		field, value, _ := strings.Cut(lines.Text(), ":")
		value = strings.TrimPrefix(value, " ")
		switch field {
		case "data":
			data = append(data, value)
		case "event":
			kind = value
		case "id":
			s.lastID = value
		case "retry":
			if ms, err := strconv.Atoi(value); err == nil {
				s.retry = time.Duration(ms) * time.Millisecond
			}
		}
	}
	return lines.Err()
}

func main() {
	address, topic := "http://127.0.0.1:8080", "news"
	if value := os.Getenv("RELAY_URL"); value != "" {
		address = value
	}
	if len(os.Args) > 1 {
		topic = os.Args[1]
	}
	query := url.Values{"topic": {topic}, "since": {"earliest"}}
	s := &subscriber{url: address + "/events?" + query.Encode(), retry: time.Second}
	for {
		err := s.follow()
		if errors.Is(err, errEnded) {
			return
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		time.Sleep(s.retry)
	}
}

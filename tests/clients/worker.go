// Runs the snippet of snippets/lines.go for each job on standard input, and prints each line at once, with its time.
package main

import (
	"bufio"
	"encoding/json"
	"net/http"
	"os"
	"time"
)

func report(name string, value any) {
	at := float64(time.Now().UnixMicro()) / 1e6
	json.NewEncoder(os.Stdout).Encode(map[string]any{"at": at, name: value})
}

func main() {
	report("ready", true)
	for jobs := bufio.NewScanner(os.Stdin); jobs.Scan(); {
		var job struct {
			URL     string
			Headers map[string]string
		}
		if err := json.Unmarshal(jobs.Bytes(), &job); err != nil {
			panic(err)
		}
		header := http.Header{}
		for name, value := range job.Headers {
			header.Set(name, value)
		}
		if err := lines(job.URL, header, func(line string) { report("line", line) }); err != nil {
			report("end", "error: "+err.Error())
		} else {
			report("end", "clean")
		}
	}
}

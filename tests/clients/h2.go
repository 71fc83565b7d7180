// Opens streams over HTTP/2 and prints each data line with the number of its stream. Ends when all streams have ended.
package main

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
)

func main() {
	url, count := os.Args[1], 0
	count, _ = strconv.Atoi(os.Args[2])
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	client := &http.Client{Transport: &http.Transport{
		Protocols:       protocols,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
	}}
	var output sync.Mutex
	var streams sync.WaitGroup
	for number := 0; number < count; number++ {
		streams.Add(1)
		go func() {
			defer streams.Done()
			response, err := client.Get(url)
			if err != nil {
				fmt.Println("error", err)
				return
			}
			defer response.Body.Close()
			output.Lock()
			fmt.Println("open", response.Proto, response.StatusCode)
			output.Unlock()
			lines := bufio.NewScanner(response.Body)
			for lines.Scan() {
				if data, found := strings.CutPrefix(lines.Text(), "data: "); found {
					output.Lock()
					fmt.Println("data", number, data)
					output.Unlock()
				}
			}
			output.Lock()
			fmt.Println("end", number, lines.Err())
			output.Unlock()
		}()
	}
	streams.Wait()
}

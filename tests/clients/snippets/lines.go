package main

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"strings"
)

func lines(url string, header http.Header, take func(line string)) error {
	request, err := http.NewRequest("GET", url, nil)
	if err != nil {
		return err
	}
	request.Header = header
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != 200 {
		return fmt.Errorf("status %s", response.Status)
	}
	// A bufio.Scanner stops at a line of 64 KiB.
	for reader := bufio.NewReader(response.Body); ; {
		line, err := reader.ReadString('\n')
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		take(strings.TrimSuffix(line, "\n"))
	}
}

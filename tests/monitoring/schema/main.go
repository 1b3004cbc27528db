// SPDX-License-Identifier: Apache-2.0

// Says what of the dashboards named is not as Grafana's published schema has it, of which this SDK's types are generated.
package main

import (
	"fmt"
	"os"

	"github.com/grafana/grafana-foundation-sdk/go/cog/plugins"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
)

func main() {
	plugins.RegisterDefaultPlugins()
	wrong := false
	for _, path := range os.Args[1:] {
		raw, err := os.ReadFile(path)
		var read dashboard.Dashboard
		if err == nil {
			err = read.UnmarshalJSONStrict(raw)
		}
		if err == nil {
			err = read.Validate()
		}
		// The SDK returns an empty list of errors where there is none.
		if err != nil && err.Error() != "" {
			fmt.Printf("%s: %v\n", path, err)
			wrong = true
		}
	}
	if wrong {
		os.Exit(1)
	}
}

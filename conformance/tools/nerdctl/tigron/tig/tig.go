// Package tig has the one type of nerdctl's own test framework that nerdctl's executable refers to.
package tig

// T is what nerdctl's helpers need of a test.
type T interface {
	Helper()
	FailNow()
	Fail()
	Log(args ...any)
	Name() string
	TempDir() string
}

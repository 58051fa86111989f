package wire

import (
	"context"
	"math/rand/v2"
)

type traceKey struct{}

// WithTraceID gives the calls made under the context a trace id. Handlers get
// the id of their request in their context, so it follows the work from node
// to node.
func WithTraceID(ctx context.Context, id uint64) context.Context {
	return context.WithValue(ctx, traceKey{}, id)
}

// TraceID is the context's trace id, 0 for none.
func TraceID(ctx context.Context) uint64 {
	id, _ := ctx.Value(traceKey{}).(uint64)
	return id
}

// traceOf is the context's trace id, or a new one: no frame goes without.
func traceOf(ctx context.Context) uint64 {
	if id := TraceID(ctx); id != 0 {
		return id
	}
	return rand.Uint64() | 1
}

// tracedContext is a request's context: the trace id without an allocation of its own.
type tracedContext struct {
	context.Context
	id uint64
}

// Value answers for the trace id and asks the parent for the rest.
func (c *tracedContext) Value(key any) any {
	if key == (traceKey{}) {
		return c.id
	}
	return c.Context.Value(key)
}

export async function inspect() {}
export function look() { return []; }
